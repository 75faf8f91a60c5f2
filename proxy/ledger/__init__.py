"""What each request has used, where that is kept; SQLAlchemy is imported there alone."""
