"""What knowledge components do with feature maps: adapters, pairing, similarity, centring, gathering."""
