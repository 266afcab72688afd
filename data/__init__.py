"""Data: sets and splits, augmentation, loaders. The default download folder is `datasets/`, never this one."""
