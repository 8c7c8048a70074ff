/** An NBD endpoint without a socket, and the bytes that go into one. */

import type { Image } from '../../formats/image/image.ts';
import { ChainImage, MemoryStorage } from '../../formats/index.ts';
import { RawLayer } from '../../formats/raw/raw.ts';
import type { Edge } from '../../src/edge/connection.ts';
import { newCounters } from '../../src/nbd/counters.ts';
import { Endpoint, type EndpointHost } from '../../src/nbd/endpoint.ts';
import type { NbdExport } from '../../src/nbd/export.ts';
import { DEFAULT_LIMITS, type NbdLimits } from '../../src/nbd/limits.ts';
import { ChunkPool } from '../../src/wire/chunk-pool.ts';
import type { Batch } from '../../src/wire/output.ts';
import { SpyImage } from './spy-image.ts';

/** A raw disk in memory whose bytes are `i % 251`. */
export function patternDisk(size: number): Image {
  return new ChainImage([new RawLayer(new MemoryStorage({ bytes: pattern(0, size) }), false)]);
}

export function pattern(offset: number, length: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => (offset + i) % 251));
}

/** A server's side of one connection: takes bytes, keeps what it sends. */
export class MemoryEndpoint implements Edge {
  readonly endpoint: Endpoint;
  readonly host: EndpointHost;
  readonly sent: Buffer[] = [];
  /** Exports that it has stopped to hold. */
  readonly left: NbdExport[] = [];
  /** Batches are not taken while this is set. */
  stuck = false;
  paused = false;
  closed: { reason: string; graceful: boolean } | undefined;
  readonly #waiting: Batch[] = [];

  constructor(
    exports: readonly NbdExport[],
    options: { limits?: Partial<NbdLimits>; tls?: EndpointHost['tls']; pool?: ChunkPool } = {},
  ) {
    const limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.host = {
      limits,
      counters: newCounters(),
      tls: options.tls ?? 'none',
      closing: false,
      pool: options.pool ?? new ChunkPool(limits.totalMemory),
      catalog: {
        list: () => exports,
        find: (name) => (name === '' ? exports[0] : exports.find((each) => each.name === name)),
      },
      started: () => undefined,
      left: (found) => this.left.push(found),
    };
    this.endpoint = new Endpoint(this.host, this, () => undefined);
    this.endpoint.greet();
  }

  /** Why it was closed; '' while it is open. */
  get reason(): string {
    return this.closed?.reason ?? '';
  }

  /** Everything sent since the last call. */
  take(): Buffer {
    return Buffer.concat(this.sent.splice(0));
  }

  /** Waits until nothing is under way, and gives what was sent. */
  async settle(): Promise<Buffer> {
    do await new Promise((resolve) => setImmediate(resolve));
    while ((this.endpoint.transmission?.inFlight ?? 0) > 0);
    await new Promise((resolve) => setImmediate(resolve));
    return this.take();
  }

  /** The socket takes what it was given; `again`: and then nothing more. */
  unstick(again = false): void {
    this.stuck = again;
    for (const batch of this.#waiting.splice(0)) batch.taken();
  }

  write(batch: Batch): void {
    for (let i = 0; i < batch.count; i++) this.sent.push(Buffer.from(batch.piece(i)));
    if (this.stuck) this.#waiting.push(batch);
    else setImmediate(batch.taken);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
  }

  wake(): void {
    process.nextTick(() => this.endpoint.wakeUp());
  }

  close(reason: string, graceful: boolean): void {
    this.closed = { reason, graceful };
  }
}

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}

export const clientFlags = u32(3);

export function option(code: number, ...data: Uint8Array[]): Buffer {
  const all = Buffer.concat(data);
  return Buffer.concat([Buffer.from('IHAVEOPT'), u32(code), u32(all.length), all]);
}

export function text(value: string): Buffer {
  return Buffer.concat([u32(Buffer.byteLength(value)), Buffer.from(value)]);
}

/** GO for an export; asks for no further information. */
export function go(name = 'disk'): Buffer {
  return option(7, text(name), u16(0));
}

export interface RequestFields {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: number;
  readonly offset?: number | bigint;
  readonly length?: number;
  readonly payload?: Uint8Array;
}

export function request(fields: RequestFields): Buffer {
  const { type, flags = 0, cookie = 7, offset = 0, payload = Buffer.alloc(0), length = payload.length } = fields;
  return Buffer.concat([u32(0x25609513), u16(flags), u16(type), u64(cookie), u64(offset), u32(length), payload]);
}

export function extendedRequest(fields: RequestFields): Buffer {
  const { type, flags = 0, cookie = 7, offset = 0, payload = Buffer.alloc(0), length = payload.length } = fields;
  return Buffer.concat([u32(0x21e41c71), u16(flags), u16(type), u64(cookie), u64(offset), u64(length), payload]);
}

export function simpleReply(cookie = 7, error = 0): Buffer {
  return Buffer.concat([u32(0x67446698), u32(error), u64(cookie)]);
}

/** A structured chunk. */
export function chunk(type: number, payload: Uint8Array, { cookie = 7, done = true } = {}): Buffer {
  return Buffer.concat([u32(0x668e33ef), u16(done ? 1 : 0), u16(type), u64(cookie), u32(payload.length), payload]);
}

export function extendedChunk(
  type: number,
  payload: Uint8Array,
  { cookie = 7, offset = 0 as number | bigint } = {},
): Buffer {
  return Buffer.concat([u32(0x6e8a278c), u16(1), u16(type), u64(cookie), u64(offset), u64(payload.length), payload]);
}

export const STRUCTURED = option(8);
export const EXTENDED = option(11);
/** SET_META_CONTEXT for both contexts that every export has. */
export const CONTEXTS = option(10, text('disk'), u32(2), text('base:allocation'), text('qemu:allocation-depth'));
/** Bytes of the disk that `connected` serves. */
export const ENDPOINT_DISK_SIZE = 1024 * 1024;

export function exportOf(image: Image, readOnly = false): NbdExport {
  return { name: 'disk', description: 'a disk', image, readOnly };
}

/** An endpoint in transmission, with the disk that it serves. */
export function connected(options: Uint8Array[] = [], { readOnly = false, limits = {} } = {}) {
  const spy = new SpyImage(patternDisk(ENDPOINT_DISK_SIZE));
  const wire = new MemoryEndpoint([exportOf(spy, readOnly)], { limits });
  for (const bytes of [clientFlags, ...options, go()]) wire.endpoint.receive(bytes);
  if (wire.endpoint.transmission === undefined) throw new Error('negotiation has failed');
  wire.take();
  return { wire, spy };
}
