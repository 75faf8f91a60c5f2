"""The database: SQLite in the state folder, or PostgreSQL. Imported only where one is used."""
