"""What every package needs: errors, files, signals, terminal, pictures, versions."""
