"""Model bundles, pre-processing, and the engines that run them."""
