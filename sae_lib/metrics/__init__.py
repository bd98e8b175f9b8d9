"""What is measured on a trained SAE. Import from the modules: this package loads nothing by itself."""
