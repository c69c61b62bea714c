//! Reads secret files, at the start and again at SIGHUP, when the poll loop waits for the result.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::Size;
use crate::limits::SECRET_FILE_BYTES_MAX;

/// Reads a regular file of at most [`SECRET_FILE_BYTES_MAX`] bytes.
///
/// Nothing else is opened, because opening or reading a FIFO, a terminal or a device can block for ever. A symbolic link
/// to a regular file is followed: Kubernetes mounts secrets as symbolic links. A network file system that hangs still
/// blocks this call; only the watchdog of a service manager ends that.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    check_is_regular(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    // The path can name another file by now.
    check_is_regular(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(SECRET_FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > SECRET_FILE_BYTES_MAX {
        let max = Size(SECRET_FILE_BYTES_MAX as u64);
        return Err(io::Error::other(format!("expected at most {max} bytes, got more")));
    }
    Ok(bytes)
}

fn check_is_regular(metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(());
    }
    let name = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO or pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!("expected a regular file, got {name}")))
}
