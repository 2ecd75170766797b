//! The routes over HTTP, above an engine that repeats what it is told.
