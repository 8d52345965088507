"""U-Nets and what they are made of."""
