"""Files of autoencoders: the library's own and those of others, read and written without PyTorch."""
