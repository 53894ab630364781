"""What the operating system gives: files, folders, permissions, processes, standard streams."""
