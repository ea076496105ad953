"""What should happen: pure equations that know no network."""
