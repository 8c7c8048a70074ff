import type { Storage } from '../../formats/storage/storage.ts';

/** Counts the bytes that go in and out of a storage from now on. */
export function countBytes(storage: Storage): { read: number; written: number } {
  const bytes = { read: 0, written: 0 };
  const { tryReadv, readv, tryWritev, writev } = storage;
  // A storage may do the one by the other.
  let counted = false;
  const apart = <T>(act: () => T): T => {
    counted = true;
    try {
      return act();
    } finally {
      counted = false;
    }
  };
  storage.tryReadv = (offset, iov) => {
    const done = tryReadv.call(storage, offset, iov);
    if (done && !counted) bytes.read += iov.byteLength;
    return done;
  };
  storage.readv = (offset, iov) => {
    bytes.read += iov.byteLength;
    return apart(() => readv.call(storage, offset, iov));
  };
  storage.tryWritev = (offset, iov) => {
    const done = tryWritev.call(storage, offset, iov);
    if (done && !counted) bytes.written += iov.byteLength;
    return done;
  };
  storage.writev = (offset, iov) => {
    bytes.written += iov.byteLength;
    return apart(() => writev.call(storage, offset, iov));
  };
  return bytes;
}
