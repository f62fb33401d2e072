"""Tables and pictures: pure functions of records and arrays."""
