//! A placeholder until the aligned buffer lands.
