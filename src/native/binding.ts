/**
 * Loads the addon. It is optional: without it (not built, another platform, LUNETTE_NATIVE=0) `native` is undefined, and everything
 * but what truly needs it takes its pure-Node form.
 */

import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** An I/O queue of the addon: see IoQueue. */
export type QueueHandle = { readonly __queue: unique symbol };

/** A UIO device of the addon: see UioDevice. */
export type UioHandle = { readonly __uio: unique symbol };

/** A netlink socket of the addon: see NetlinkSocket. */
export type NetlinkHandle = { readonly __netlink: unique symbol };

/** What the netlink thread has to say; `message` is empty but for events of the kernel. */
export interface NetlinkMessage {
  readonly kind: number;
  readonly deviceId: number;
  /** Which event of the device it is about. */
  readonly ticket: number;
  readonly errno: number;
  readonly message: Buffer;
}

/** A connected socket of the addon: see SocketStream. */
export type StreamHandle = { readonly __stream: unique symbol };

/** Codes of the queue's operations, by name. */
export interface QueueOperations {
  readonly read: number;
  readonly write: number;
  readonly dataSync: number;
  readonly truncate: number;
  readonly punchHole: number;
  readonly zeroRange: number;
  readonly allocate: number;
  readonly seekData: number;
  readonly seekHole: number;
  readonly cloneRange: number;
  readonly copyRange: number;
  readonly deviceDiscard: number;
  readonly deviceZeroOut: number;
  readonly deviceZeroRange: number;
  readonly lock: number;
  readonly unlock: number;
  readonly testLock: number;
  /** Absent where this Node keeps its zlib to itself. */
  readonly inflate?: number;
  /** Absent in an addon that was built before they were. */
  readonly copySparse?: number;
  readonly findZeros?: number;
  readonly compare?: number;
  readonly unpack?: number;
  readonly pack?: number;
}

/** What probeDirectory finds, as bits. */
export interface ProbeFlags {
  readonly cachedReads: number;
  readonly noWaitWrites: number;
  readonly seekData: number;
  readonly punchesHoles: number;
  readonly zeroesRanges: number;
  readonly ofdLocks: number;
}

/** The addon's exports. Those that fail throw an Error with `code` (errno's name), `errno` and `syscall`. */
export interface NativeBinding {
  /** Call block of `transfer`: mode, fd, offset, segment count, then address and length of each segment. */
  readonly transferWords: Float64Array<ArrayBuffer>;
  /** Reads or writes on this thread as the call block says; word 0 is the result, a negative errno or bytes moved. */
  transfer(): void;
  addressOf(memory: Uint8Array): number;
  /** f_type of statfs(2). */
  fileSystemType(fd: number): number;
  deviceSize(fd: number): number;
  deviceBlockSize(fd: number): number;
  probeDirectory(path: string): number;
  readonly probeFlags: ProbeFlags;
  /** @returns 0 or a negative errno. Absent in an addon that was built before it was */
  exchangeNames?(one: string, other: string): number;

  queueCreate(threads: number, completions: Float64Array, onCompletions: (count: number) => void): QueueHandle;
  queueSubmit(queue: QueueHandle, words: Float64Array, wordCount: number): number;
  queueSetThreads(queue: QueueHandle, threads: number): number;
  /** Runs what was submitted to its end and joins the threads. */
  queueClose(queue: QueueHandle): void;
  readonly operations: QueueOperations;
  /** Whether there is a library for a StreamForm (native/streams.h): looks for it when it is first asked. Absent as `unpack` is */
  canUnpack?(form: number): boolean;
  canPack?(form: number): boolean;

  /** Memory that this thread and those of I/O queues need does not wait for writes to disks that we serve. @returns 0 or a negative errno */
  becomeIoFlusher(): number;
  /** One datagram to a Unix socket; a path that begins with @ is an abstract name. */
  sendDatagram(path: string, text: string): number;
  uioOpen(
    memoryFd: number,
    eventFd: number,
    kickFd: number,
    size: number,
    batch: Uint32Array,
    callback: (what: number, records: number) => void,
  ): UioHandle;
  uioMemory(device: UioHandle): ArrayBuffer;
  uioFlags(device: UioHandle): number;
  uioReason(device: UioHandle): string;
  uioStart(device: UioHandle): void;
  uioStop(device: UioHandle): void;
  uioRestart(device: UioHandle): void;
  uioComplete(device: UioHandle, words: Uint32Array, count: number): number;
  uioKick(device: UioHandle): number;
  uioClose(device: UioHandle): void;

  netlinkOpen(timeoutMs: number, callback: (message: NetlinkMessage) => void): NetlinkHandle;
  netlinkAnswer(socket: NetlinkHandle, deviceId: number, ticket: number, status: number): boolean;
  netlinkLeave(socket: NetlinkHandle, deviceId: number, ticket: number): boolean;
  netlinkAnswerMissed(socket: NetlinkHandle, event: number, deviceId: number, status: number): number;
  netlinkSetFeatures(socket: NetlinkHandle, answers: boolean): number;
  netlinkClose(socket: NetlinkHandle): void;

  /** Address and length of each segment of the next streamWrite. */
  readonly streamWords?: Float64Array<ArrayBuffer>;
  /** The event that says that more can be written. */
  readonly streamWritable: number;
  /** A stream on a duplicate of the descriptor. Events: bytes read into the buffer, 0 at the end, a negative errno, streamWritable. */
  streamOpen(fd: number, buffer: Uint8Array, onEvent: (event: number) => void): StreamHandle;
  streamWatch(stream: StreamHandle, readable: boolean, writable: boolean): void;
  /** @returns bytes written, or a negative errno */
  streamWrite(stream: StreamHandle, segments: number): number;
  /** Nothing more is written: the other side sees the end. */
  streamShutdown(stream: StreamHandle): void;
  streamClose(stream: StreamHandle): void;

  isZero(memory: Uint8Array, offset: number, length: number): boolean;
  crc32c(memory: Uint8Array, offset: number, length: number, crc: number): number;
  crc32cPortable(memory: Uint8Array, offset: number, length: number, crc: number): number;
  /** `sse4.2`, `armv8-crc` or `table`. */
  readonly crc32cImplementation: string;
}

/** What came of loading the addon. */
export interface LoadResult {
  readonly binding?: NativeBinding;
  /** Where it was loaded from. */
  readonly path?: string;
  /** Why it was not. */
  readonly reason?: string;
}

/** Tries to load the addon, as the environment says. Called once for `native`; again by tests. */
export function loadBinding(env: NodeJS.ProcessEnv = process.env): LoadResult {
  if (env.LUNETTE_NATIVE === '0') return { reason: 'LUNETTE_NATIVE=0' };
  const root = packageRoot(dirname(fileURLToPath(import.meta.url)));
  if (root === undefined) return { reason: 'the package that holds it was not found' };
  const path = join(root, 'native', 'build', 'Release', 'lunette.node');
  if (!existsSync(path)) return { reason: `${path} has not been built` };
  try {
    return { binding: createRequire(import.meta.url)(path) as NativeBinding, path };
  } catch (error) {
    return { reason: error instanceof Error ? error.message : String(error) };
  }
}

/** The folder of our package.json: this file is two levels below it in the sources, three in dist/. */
function packageRoot(from: string): string | undefined {
  for (let folder = from; ; folder = dirname(folder)) {
    try {
      const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { name?: unknown };
      if (manifest.name === 'lunette') return folder;
    } catch {
      // None here, or not ours.
    }
    if (dirname(folder) === folder) return undefined;
  }
}

/** How loading went when this process first asked. */
export const loaded: LoadResult = loadBinding();

/** The addon; undefined where it is absent or switched off. */
export const native: NativeBinding | undefined = loaded.binding;

/** The addon, for code that is only reached with it. @throws {TypeError} when it is absent */
export function requireNative(): NativeBinding {
  if (native === undefined) throw new TypeError('the native addon is not loaded');
  return native;
}
