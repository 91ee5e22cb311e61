"""The jobs of a sweep in processes of their own, however a launcher starts them."""
