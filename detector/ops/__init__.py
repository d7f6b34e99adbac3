"""Element-wise operations of the networks; imports nothing but torch."""
