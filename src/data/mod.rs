//! Pictures: folders of them, decoding, transforms, batches.
