"""What lies in a folder: documents, and the passages they are cut into."""
