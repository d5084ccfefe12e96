//! Networks and how their parameters begin.

pub mod init;
