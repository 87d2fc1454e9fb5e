"""What trains the networks: data, augmentation, losses, trainer."""
