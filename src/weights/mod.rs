//! State dicts: reading, writing and matching them.
