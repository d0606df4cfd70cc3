"""Files of autoencoders, the library's own and those of others, without PyTorch."""
