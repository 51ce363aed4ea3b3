"""The input data: subjects and their photos, class pictures, and random changes to photos."""
