"""What each request has used, kept in the database. Imported only where that is kept."""
