import { ProtocolError } from '../../formats/core/errors.ts';
import type { Edge } from '../edge/connection.ts';
import type { TickingEndpoint } from '../edge/listener.ts';
import { CHUNK_SIZE, type ChunkPool, ChunkShare } from '../wire/chunk-pool.ts';
import { type Batch, Output } from '../wire/output.ts';
import type { NbdExport } from './export.ts';
import { type Agreement, type HandshakeEdge, type HandshakeHost, ServerHandshake, serverHello } from './handshake.ts';
import { Transmission } from './transmission.ts';

/** What an endpoint needs of its server. */
export interface EndpointHost extends HandshakeHost {
  readonly pool: ChunkPool;
  /** A client has chosen its export. */
  started(endpoint: Endpoint): void;
}

/**
 * The server's end of one connection, from the first byte to the last, without a socket: negotiation, then transmission. Never
 * throws for what a client sends: the connection is closed instead.
 */
export class Endpoint implements HandshakeEdge, TickingEndpoint {
  /** Once an export is chosen. */
  transmission: Transmission | undefined;
  readonly #host: EndpointHost;
  readonly #edge: Edge;
  readonly #secure: () => void;
  readonly #share: ChunkShare;
  readonly #output: Output;
  readonly #handshake: ServerHandshake;
  /** Bytes that came and wait until the requests before them have room. */
  #rest: { bytes: Uint8Array; at: number; end: number }[] = [];
  #paused = false;
  #receiving = false;
  #startingTls = false;
  #closed = false;
  /** About to end: what is under way finishes, nothing is begun. */
  #finishing = false;
  #heardMs: number | undefined;
  #heard = true;
  #lastSent = 0;
  #progressMs: number | undefined;

  /** @param secure what was written is the end of what is sent in the clear: says encrypted() when TLS is up */
  constructor(host: EndpointHost, edge: Edge, secure: () => void) {
    this.#host = host;
    this.#edge = edge;
    this.#secure = secure;
    this.#share = new ChunkShare(host.pool, host.limits.connectionMemory);
    this.#output = new Output(this.#share, { write: (batch: Batch) => this.#write(batch) });
    this.#output.onTaken = () => this.#taken();
    this.#handshake = new ServerHandshake(host, this);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** True while an export must stay open for this client: it has chosen it, or has asked about it and may choose it yet. */
  holds(found: NbdExport): boolean {
    return this.#handshake.looked.has(found);
  }

  /** Negotiation is over, and TLS with it. */
  get settled(): boolean {
    return this.transmission !== undefined;
  }

  /** Sends the server's first words. */
  greet(): void {
    this.send(serverHello());
    this.flush();
  }

  /** Takes bytes of the client, cut anywhere. They are not looked at after the return. */
  receive(bytes: Uint8Array, start = 0, end: number = bytes.length): void {
    if (this.#closed) return;
    this.#heard = true;
    this.#host.counters.bytesIn += end - start;
    if (this.#startingTls) {
      // What comes in the clear behind STARTTLS could have been put there by somebody in the middle.
      this.close('bytes in the clear where TLS should begin');
      return;
    }
    const at = this.#rest.length > 0 ? start : this.#run(bytes, start, end);
    if (at < end && !this.#closed && !this.#finishing) {
      this.#rest.push({ bytes: bytes.slice(at, end), at: 0, end: end - at });
      this.#pause();
    }
    this.flush();
  }

  /** Goes on after a tick in which requests have ended. */
  wakeUp(): void {
    if (this.#closed) return;
    this.#goOn();
    this.flush();
  }

  /** Sends what is queued. */
  flush(): void {
    if (!this.#closed) this.#output.flush();
  }

  /** TLS is up. */
  encrypted(): void {
    this.#startingTls = false;
    this.#handshake.encrypted();
  }

  /** About once a second, in transmission: drops clients that stall or are silent for too long. */
  tick(nowMs: number): void {
    const { limits, counters } = this.#host;
    const { transmission } = this;
    if (this.#closed || transmission === undefined) return;
    const output = this.#output;
    if (output.queued === 0 || output.sent !== this.#lastSent) {
      this.#lastSent = output.sent;
      this.#progressMs = nowMs;
    }
    if (this.#heard || this.#paused || transmission.inFlight > 0) {
      this.#heard = false;
      this.#heardMs = nowMs;
    }
    const silentMs = nowMs - (this.#heardMs ?? nowMs);
    let why: string | undefined;
    if (nowMs - (this.#progressMs ?? nowMs) >= limits.stallTimeoutMs) why = 'the client takes no answers';
    else if (transmission.partial && silentMs >= limits.stallTimeoutMs) why = 'the client stopped inside a request';
    else if (limits.idleTimeoutMs > 0 && silentMs >= limits.idleTimeoutMs) why = 'the client was idle for too long';
    if (why === undefined) return;
    counters.timeouts++;
    this.close(why);
  }

  /** Ends the connection in order: requests under way are answered, no further one is begun. */
  finish(reason: string): void {
    const { transmission } = this;
    if (transmission === undefined) {
      this.close(reason);
      return;
    }
    if (this.#finishing || this.#closed) return;
    this.#finishing = true;
    this.#rest = [];
    void transmission.stop().then(() => this.close(reason, true));
  }

  /** Closes the connection from our side. */
  close(reason: string, graceful = false): void {
    if (this.#closed) return;
    if (graceful) this.flush();
    this.#shut();
    this.#edge.close(reason, graceful);
  }

  /** The socket is gone. */
  gone(): void {
    this.#shut();
  }

  /** Resolves when nothing that the client asked for is under way any more. */
  ended(): Promise<void> {
    return this.transmission?.stop() ?? Promise.resolve();
  }

  #shut(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#rest = [];
    void this.transmission?.stop();
    this.#handshake.close();
    if (this.transmission !== undefined) this.#host.counters.clients--;
    this.#output.close();
  }

  /** @returns where it stopped: what is behind cannot go on now */
  #run(bytes: Uint8Array, start: number, end: number): number {
    this.#receiving = true;
    let at = start;
    try {
      while (at < end && !this.#closed && !this.#blocked) {
        const { transmission } = this;
        if (this.#startingTls) throw new ProtocolError('PROTOCOL', 'bytes in the clear where TLS should begin');
        if (transmission !== undefined) at = transmission.receive(bytes, at, end);
        else at += this.#handshake.receive(bytes, at, end);
      }
    } catch (error) {
      this.fail(error);
    }
    this.#receiving = false;
    return at;
  }

  get #blocked(): boolean {
    if (this.transmission !== undefined) return this.transmission.blocked;
    return this.#handshake.waiting || this.#output.queued >= CHUNK_SIZE;
  }

  #goOn(): void {
    while (this.#rest.length > 0 && !this.#closed && !this.#blocked) {
      const first = this.#rest[0] as { bytes: Uint8Array; at: number; end: number };
      first.at = this.#run(first.bytes, first.at, first.end);
      // Nothing is left of it, or of anything: the end may have come meanwhile.
      if (first.at === first.end && this.#rest[0] === first) this.#rest.shift();
    }
    if (this.#rest.length === 0 && this.#paused && !this.#closed) {
      this.#paused = false;
      this.#edge.resume();
    }
  }

  #pause(): void {
    if (this.#paused) return;
    this.#paused = true;
    this.#edge.pause();
  }

  #write(batch: Batch): void {
    this.#host.counters.bytesOut += batch.bytes;
    this.#edge.write(batch);
  }

  /** The socket has taken a batch. */
  #taken(): void {
    if (this.#closed || this.#receiving) return;
    this.wakeUp();
  }

  // --- what the handshake asks ---

  send(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at += CHUNK_SIZE) {
      const part = bytes.subarray(at, at + CHUNK_SIZE);
      this.#output.ensure(part.length).memory.set(part, this.#output.at);
      this.#output.commit(part.length);
    }
  }

  startTls(): void {
    this.#startingTls = true;
    this.flush();
    this.#secure();
  }

  agreed(agreement: Agreement): void {
    const { limits, counters } = this.#host;
    counters.clients++;
    this.transmission = new Transmission({
      agreement,
      output: this.#output,
      share: this.#share,
      limits,
      counters,
      wake: () => this.#edge.wake(),
      disconnect: () => this.finish('the client has disconnected'),
    });
    this.#host.started(this);
  }

  ready(): void {
    this.wakeUp();
  }

  fail(error: unknown): void {
    this.#host.counters.protocolErrors++;
    const reason = error instanceof Error ? error.message : String(error);
    this.close(error instanceof ProtocolError ? reason : `internal error: ${reason}`, true);
  }
}
