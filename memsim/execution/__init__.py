"""What the capped worker imports: sessions that really execute step programs."""
