"""Cache of the features of a frozen backbone: the callback, its dataset and its file format."""
