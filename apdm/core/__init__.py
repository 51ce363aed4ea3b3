"""What every package needs: errors, logging, files, signals, the terminal, pictures, versions, AdamW."""
