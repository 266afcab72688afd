"""A finished model for others: as a class, a program, a card, on the Hugging Face Hub."""
