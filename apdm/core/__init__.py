"""Basic modules that the other packages use: errors, logging, files, signals, terminal, pictures, versions, AdamW."""
