//! What servers say when things go wrong: a scripted server on loopback answers each request with what the test gives it,
//! and keeps what it was asked.
