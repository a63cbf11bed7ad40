"""Creates and updates the tables; the code's one name is `tdev_models.migrations`."""
