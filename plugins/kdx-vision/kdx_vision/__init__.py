"""timm and torchvision models, and data sets of image files, for kdx."""
