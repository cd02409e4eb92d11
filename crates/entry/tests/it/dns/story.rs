//! A name moved and put back.
