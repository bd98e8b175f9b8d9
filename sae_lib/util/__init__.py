"""What every other part uses, and what depends on none of them."""
