"""What goes in: subjects and their photos, class pictures, and random changes to photos."""
