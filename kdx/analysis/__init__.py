"""What a model consists of and costs: its layers, operations, time and memory."""
