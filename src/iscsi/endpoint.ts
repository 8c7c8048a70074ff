import { ProtocolError } from '../../formats/core/errors.ts';
import type { Edge } from '../edge/connection.ts';
import type { TickingEndpoint } from '../edge/listener.ts';
import { type ChunkPool, ChunkShare } from '../wire/chunk-pool.ts';
import { type Batch, Output } from '../wire/output.ts';
import type { IscsiCounters } from './counters.ts';
import type { Crc32c } from './digest.ts';
import type { IscsiLimits } from './limits.ts';
import {
  LOGIN_AUTHENTICATION_FAILURE,
  LOGIN_SUCCESS,
  Login,
  type LoginAuthentication,
  type LoginReply,
  type LoginRequest,
} from './login.ts';
import {
  AT_CID,
  AT_CMD_SN,
  AT_FLAGS,
  AT_ITT,
  BHS_LENGTH,
  CONTINUE,
  LOGIN_REQUEST,
  LOGIN_RESPONSE,
  OPCODE_MASK,
  TRANSIT,
} from './pdu.ts';
import { type PduHandler, PduReader } from './pdu-reader.ts';
import { PduWriter, SequenceNumbers } from './pdu-writer.ts';
import { Session, type SessionOptions } from './session.ts';
import type { IscsiTarget } from './target.ts';
import type { TargetRecord } from './text-exchange.ts';

/** Longest data segment of a Login Request: the default of MaxRecvDataSegmentLength, twice over for generous readings. */
const LOGIN_SEGMENT = 16 * 1024;

/** What an endpoint needs from its portal. */
export interface EndpointHost {
  readonly limits: IscsiLimits;
  readonly counters: IscsiCounters;
  readonly pool: ChunkPool;
  readonly crc32c: Crc32c;
  readonly discovery: LoginAuthentication;
  findTarget(name: string): IscsiTarget | undefined;
  /** Targets an initiator may know of, with the portal address that it came through. */
  targetsFor(initiator: string, localAddress: string): TargetRecord[];
  /** A login went well or failed: for the log. */
  loggedIn(endpoint: Endpoint, login: Login<IscsiTarget>): void;
  loginFailed(endpoint: Endpoint, login: Login<IscsiTarget>, status: number, reason: string): void;
  /** Something failed that no peer should be able to make fail; the connection is closed. */
  internalError(error: unknown): void;
}

/**
 * The target's end of one connection, from the first byte to the last, without a socket: login, then a session. Never throws for
 * what a peer sends: the connection is closed instead.
 */
export class Endpoint implements PduHandler, TickingEndpoint {
  /** There is no TLS in iSCSI. */
  readonly settled = true;
  /** In full-feature phase. */
  session: Session | undefined;
  /** `address:port` of our side, as TargetAddress has it. */
  readonly localAddress: string;
  readonly #host: EndpointHost;
  readonly #edge: Edge;
  readonly #output: Output;
  readonly #share: ChunkShare;
  readonly #writer: PduWriter;
  readonly #reader: PduReader;
  readonly #login: Login<IscsiTarget>;
  #loginView = new DataView(new ArrayBuffer(BHS_LENGTH));
  #loginData: Uint8Array = new Uint8Array(0);
  #loginLength = 0;
  #firstLogin = true;
  /** The last reply of login waits for an older session to end. */
  #joining = false;
  #paused = false;
  #receiving = false;
  #closed = false;

  constructor(host: EndpointHost, edge: Edge, localAddress: string) {
    this.#host = host;
    this.#edge = edge;
    this.localAddress = localAddress;
    this.#share = new ChunkShare(host.pool, host.limits.sessionMemory);
    this.#output = new Output(this.#share, { write: (batch: Batch) => this.#write(batch) });
    this.#output.onTaken = () => this.#taken();
    const numbers = new SequenceNumbers({ statSN: 1, expCmdSN: 1, depth: host.limits.queueDepth });
    this.#writer = new PduWriter(this.#output, numbers, host.crc32c);
    this.#reader = new PduReader(this, { maxDataLength: LOGIN_SEGMENT, crc32c: host.crc32c });
    this.#reader.maxAhsLength = 0;
    this.#login = new Login<IscsiTarget>(host);
  }

  /** Takes bytes of the peer, [start, end) of a chunk, cut anywhere. They are not looked at after the return. */
  receive(bytes: Uint8Array, start = 0, end: number = bytes.length): void {
    if (this.#closed) return;
    this.#host.counters.bytesIn += end - start;
    this.#receiving = true;
    try {
      this.#reader.receive(bytes, start, end);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#receiving = false;
    }
    this.flush();
    if (this.#output.queued >= this.#host.limits.outputLimit && !this.#paused && !this.#closed) {
      // The initiator does not take its answers: no more questions until it does.
      this.#paused = true;
      this.#edge.pause();
    }
  }

  /** Sends what has completed since. */
  wakeUp(): void {
    this.flush();
  }

  /** Sends what is queued. */
  flush(): void {
    if (!this.#closed) this.#output.flush();
  }

  /** About once a second: keepalive and stall detection. The time limit of login is the portal's. */
  tick(nowMs: number): void {
    this.session?.tick(nowMs);
    this.flush();
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

  #shut(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#reader.stop();
    const { session } = this;
    if (session !== undefined) {
      session.terminate().catch((error) => this.#host.internalError(error));
      this.#login.target?.leave(session);
      if (this.#login.target !== undefined)
        this.#host.counters.sessions = Math.max(0, this.#host.counters.sessions - 1);
    }
    this.#output.close();
  }

  #fail(error: unknown): void {
    const { counters } = this.#host;
    if (this.#reader.headerDigestErrors > 0) counters.headerDigestErrors++;
    if (error instanceof ProtocolError) {
      counters.protocolErrors++;
      this.close(error.message, true);
    } else {
      this.#host.internalError(error);
      this.close('internal error');
    }
  }

  #write(batch: Batch): void {
    const { counters } = this.#host;
    counters.bytesOut += batch.bytes;
    counters.pdusOut += this.#writer.count;
    this.#writer.count = 0;
    this.#edge.write(batch);
  }

  /** The socket has taken a batch. */
  #taken(): void {
    if (this.#closed) return;
    this.session?.tasks?.drain();
    if (!this.#receiving) this.flush();
    if (this.#paused && this.#output.queued < this.#host.limits.outputLimit / 2) {
      this.#paused = false;
      this.#edge.resume();
    }
  }

  // --- login: its PDUs come here, later ones go to the session ---

  begin(view: DataView, at: number, _headerLength: number, dataLength: number): void {
    this.#host.counters.pdusIn++;
    const opcode = view.getUint8(at) & OPCODE_MASK;
    if (opcode !== LOGIN_REQUEST) throw new ProtocolError('PROTOCOL', `opcode 0x${opcode.toString(16)} before login`);
    if (this.#joining) throw new ProtocolError('PROTOCOL', 'a request before the end of login');
    for (let i = 0; i < BHS_LENGTH; i += 4) this.#loginView.setUint32(i, view.getUint32(at + i));
    this.#loginData = new Uint8Array(dataLength);
    this.#loginLength = 0;
  }

  data(bytes: Uint8Array, from: number, to: number): void {
    this.#loginData.set(bytes.subarray(from, to), this.#loginLength);
    this.#loginLength += to - from;
  }

  end(): void {
    const request = decodeLogin(this.#loginView, this.#loginData);
    if (this.#firstLogin) {
      this.#firstLogin = false;
      this.#writer.numbers.restart(request.cmdSN);
    }
    const reply = this.#login.step(request);
    if (this.#login.finished && reply.status === LOGIN_SUCCESS) {
      this.#enter(request, reply).catch((error) => this.#fail(error));
    } else this.#reply(request, reply, this.#login.tsih);
  }

  /** Login has succeeded: makes the session, ends an older one that it replaces, then answers. */
  async #enter(request: LoginRequest, reply: LoginReply): Promise<void> {
    const login = this.#login;
    const { target } = login;
    this.#joining = true;
    const options: Omit<SessionOptions, 'tsih' | 'nexus'> = {
      initiator: login.initiator,
      isid: login.isid,
      cid: login.cid,
      parameters: login.parameters,
      targetName: target?.name ?? '',
      device: target?.device,
      writer: this.#writer,
      share: this.#share,
      limits: this.#host.limits,
      counters: this.#host.counters,
      targets: () => this.#host.targetsFor(login.initiator, this.localAddress),
      siblings: () => target?.sessions ?? [],
      wake: () => this.#edge.wake(),
      close: (reason, graceful) => this.close(reason, graceful),
      failed: (error) => this.#fail(error),
    };
    if (target === undefined) {
      this.#start(request, reply, new Session({ ...options, tsih: 1 }));
      return;
    }
    const joined = target.join(options, login.tsih);
    if (typeof joined === 'number') {
      this.#joining = false;
      this.#reply(request, login.refuse(request, joined, 'no session can be made'), login.tsih);
      this.flush();
      return;
    }
    const { session, replaced } = joined;
    if (replaced !== undefined) {
      this.#host.counters.reinstatements++;
      replaced.options.close('the initiator logged in anew', false);
      replaced.terminate().catch((error) => this.#host.internalError(error));
      target.leave(replaced);
    }
    const earlier = target.earlierEnded(session);
    if (earlier !== undefined) await earlier;
    // Gone meanwhile, or replaced itself by a third login.
    if (this.#closed || session.ended) {
      target.leave(session);
      this.close('login was overtaken');
      return;
    }
    target.attach(session);
    this.#host.counters.sessions++;
    this.#start(request, reply, session);
    this.flush();
  }

  #start(request: LoginRequest, reply: LoginReply, session: Session): void {
    const { limits, counters } = this.#host;
    counters.loginsSucceeded++;
    this.#joining = false;
    this.#reply(request, reply, session.options.tsih);
    this.session = session;
    this.#reader.handler = session;
    const { headerDigest, dataDigest } = this.#login.parameters;
    this.#writer.setDigests(headerDigest, dataDigest);
    this.#reader.headerDigest = headerDigest;
    this.#reader.dataDigest = dataDigest;
    this.#reader.maxDataLength = limits.maxRecvDataSegmentLength;
    this.#reader.maxAhsLength = 1020;
    this.#host.loggedIn(this, this.#login);
  }

  #reply(request: LoginRequest, reply: LoginReply, tsih: number): void {
    const chunk = this.#writer.start(LOGIN_RESPONSE, loginFlags(reply), reply.text.length);
    const { view, memory } = chunk;
    const { at } = this.#output;
    memory.set(request.isid, at + 8);
    view.setUint16(at + 14, tsih);
    view.setUint32(at + AT_ITT, request.itt);
    this.#writer.stamp(view, at, reply.status === LOGIN_SUCCESS);
    view.setUint16(at + 36, reply.status);
    memory.set(reply.text, at + BHS_LENGTH);
    this.#writer.finish(reply.text.length);
    if (reply.status === LOGIN_SUCCESS) return;
    const { counters } = this.#host;
    counters.loginsFailed++;
    if (reply.status === LOGIN_AUTHENTICATION_FAILURE) counters.authenticationFailures++;
    const reason = reply.reason ?? 'login refused';
    this.#host.loginFailed(this, this.#login, reply.status, reason);
    this.close(reason, true);
  }
}

function loginFlags(reply: LoginReply): number {
  if (reply.status !== LOGIN_SUCCESS) return 0;
  return (
    (reply.transit ? TRANSIT : 0) |
    (reply.continues ? CONTINUE : 0) |
    (reply.currentStage << 2) |
    (reply.transit ? reply.nextStage : 0)
  );
}

function decodeLogin(view: DataView, data: Uint8Array): LoginRequest {
  const flags = view.getUint8(AT_FLAGS);
  return {
    transit: (flags & TRANSIT) !== 0,
    continues: (flags & CONTINUE) !== 0,
    currentStage: (flags >> 2) & 3,
    nextStage: flags & 3,
    versionMin: view.getUint8(3),
    isid: new Uint8Array(view.buffer, 8, 6).slice(),
    tsih: view.getUint16(14),
    itt: view.getUint32(AT_ITT),
    cid: view.getUint16(AT_CID),
    cmdSN: view.getUint32(AT_CMD_SN),
    data,
  };
}
