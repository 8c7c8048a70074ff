/** What the rooms above get from native code: they import io, never native. All works without the addon, too; then nativeCrc32c is undefined. */

export { type Crc32c, crc32cImplementation, nativeCrc32c } from '../native/crc32c.ts';
export { sendDatagram } from '../native/datagram.ts';
export { systemError } from '../native/errno.ts';
export { exchangeNames } from '../native/exchange-names.ts';
export { type DirectoryFacts, directoryFacts, type NativeFacts, nativeFacts } from '../native/facts.ts';
export { becomeIoFlusher } from '../native/io-flusher.ts';
export { ioThreads, setIoThreads } from '../native/io-queue.ts';
export { registerMemory } from '../native/memory.ts';
export * from '../native/ring-memory.ts';
export { type SocketEvents, SocketStream } from '../native/socket-stream.ts';
export { UioDevice, type UioListener, type UioOptions } from '../native/uio.ts';
export { type IsZero, isZero } from '../native/zero.ts';
