"""What can go in: images, videos, sounds, URLs; and where their pixels are. Knows no model."""
