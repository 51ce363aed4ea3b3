"""Subjects, class pictures, and what happens to photos on their way to a trainer."""
