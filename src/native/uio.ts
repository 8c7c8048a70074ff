import { requireNative, type UioHandle } from './binding.ts';
import { registerMemory } from './memory.ts';
import { BATCH_WORDS, type CompletionBatch } from './ring-memory.ts';

// What the callback says: as in native/glue_uio.cc.
const BATCH = 0;
const RESET = 1;
const BROKEN = 2;
const GONE = 3;

/** Set in the mailbox: a response may say how much data-in there is. */
const READ_LENGTH = 2;

/** Who serves the device. Called from the event loop. */
export interface UioListener {
  /** So many records are in `batch`. They are gone when this returns. */
  commands(records: number): void;
  /** The ring was emptied: what is in flight is void. Fetching has stopped until restart(). */
  reset(): void;
  /** The ring makes no sense any more, or memory went away under it. Fetching has stopped for good. */
  broken(reason: string): void;
  /** The kernel has removed the device. Fetching has stopped for good. */
  gone(): void;
}

export interface UioOptions {
  /** Descriptors of the device, which stay the caller's: of a real one all three are the same. */
  readonly memoryFd: number;
  readonly eventFd: number;
  readonly kickFd: number;
  /** Bytes, exactly as sysfs has it: the kernel maps no other length. */
  readonly size: number;
  readonly listener: UioListener;
}

/**
 * A UIO device: memory shared with the kernel, and a wakeup when the kernel has work.
 *
 * Pages of the data area are there while a command refers to them, and not a moment longer: only what the iovecs of a command in flight
 * name may be touched. Should a page be missed all the same, the process lives on and the ring counts as broken.
 */
export class UioDevice {
  #handle: UioHandle | undefined;
  /** Records of the commands fetched in one drain: see ring-memory.ts. Reused by the next. */
  readonly batch = new Uint32Array(BATCH_WORDS);
  /** The whole region. Detached by close(). */
  readonly memory: Uint8Array;
  /** A response may say how much data-in there is. */
  readonly takesReadLength: boolean;
  /** Bytes behind the command ring: the data of all commands in flight. */
  readonly dataAreaSize: number;
  readonly #listener: UioListener;

  /** @throws {Error} the system's error of mmap, or what makes the memory no command ring */
  constructor(options: UioOptions) {
    const { memoryFd, eventFd, kickFd, size, listener } = options;
    const binding = requireNative();
    this.#listener = listener;
    this.#handle = binding.uioOpen(memoryFd, eventFd, kickFd, size, this.batch, (what, records) => {
      if (what === BATCH) listener.commands(records);
      else this.#tell(what);
    });
    this.memory = new Uint8Array(binding.uioMemory(this.#handle));
    registerMemory(this.memory);
    // The mailbox is in the machine's byte order.
    const [, ringOffset = 0, ringSize = 0] = new Uint32Array(this.memory.buffer, 0, 3);
    this.dataAreaSize = size - ringOffset - ringSize;
    this.takesReadLength = (binding.uioFlags(this.#handle) & READ_LENGTH) !== 0;
  }

  /** Begins to fetch, with what is in the ring already. */
  start(): void {
    requireNative().uioStart(this.#open());
  }

  /** Fetches no more. What is in flight can be completed. */
  stop(): void {
    if (this.#handle !== undefined) requireNative().uioStop(this.#handle);
  }

  /** Begins anew after a reset. Nothing may be in flight. */
  restart(): void {
    requireNative().uioRestart(this.#open());
    this.start();
  }

  /** Puts completions into the ring, and tells the kernel. False: they are void, and the listener was told why. */
  complete(completions: CompletionBatch): boolean {
    const binding = requireNative();
    const handle = this.#open();
    const what = binding.uioComplete(handle, completions.words, completions.count);
    if (what === BATCH) {
      // Fails only when the device is gone: then the next wakeup says so.
      binding.uioKick(handle);
      return true;
    }
    binding.uioStop(handle);
    this.#tell(what);
    return false;
  }

  /** Unmaps the region. No native I/O on it may be in flight. Safe to call twice. */
  close(): void {
    if (this.#handle === undefined) return;
    requireNative().uioClose(this.#handle);
    this.#handle = undefined;
  }

  #tell(what: number): void {
    if (what === RESET) this.#listener.reset();
    else if (what === BROKEN) this.#listener.broken(requireNative().uioReason(this.#open()));
    else if (what === GONE) this.#listener.gone();
  }

  #open(): UioHandle {
    if (this.#handle === undefined) throw new TypeError('UioDevice is closed');
    return this.#handle;
  }
}
