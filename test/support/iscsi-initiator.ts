/**
 * A small iSCSI initiator for tests: log in, commands with several in flight, and PDUs of any shape between them. It works over a
 * socket (`IscsiInitiator.connect`) or over arrays (give it a Wire).
 */

import { createHash } from 'node:crypto';
import { connect as connectSocket } from 'node:net';
import { crc32c } from '../../src/iscsi/digest.ts';
import { encodePdu, type Pdu, PduDecoder, type PduFields, textBytes, textOf } from './iscsi-wire.ts';

/** What carries the bytes. */
export interface Wire {
  write(bytes: Uint8Array): void;
  /** Ends it without a word. */
  destroy(): void;
}

export interface LoginOptions {
  readonly name?: string;
  /** Absent: a discovery session. */
  readonly target?: string;
  /** Six bytes in hexadecimal. */
  readonly isid?: string;
  readonly tsih?: number;
  readonly cid?: number;
  readonly user?: string;
  readonly secret?: string;
  /** CHAP_A as we offer it. Default '5'. */
  readonly algorithms?: string;
  /** For mutual CHAP: what the target must prove. */
  readonly targetSecret?: string;
  /** Operational keys, over the ones that are sent anyway. */
  readonly keys?: Readonly<Record<string, string>>;
  readonly cmdSN?: number;
}

export interface CommandResult {
  readonly status: number;
  /** Sense data; empty when there is none. */
  readonly sense: Buffer;
  readonly data: Buffer;
  /** Positive: overflow; negative: underflow. */
  readonly residual: number;
  /** Data-In PDUs and R2Ts that came. */
  readonly dataIns: number;
  readonly r2ts: number;
  /** Bytes of each sequence of Data-Ins, which an F bit ends. */
  readonly sequences: readonly number[];
}

export interface CommandOptions {
  readonly lun?: number;
  /** Data for the target. */
  readonly dataOut?: Uint8Array;
  /** Bytes we expect. */
  readonly readLength?: number;
  /** EDTL, when it is to differ from the above. */
  readonly expectedLength?: number;
  /** 0 untagged, 1 simple, 2 ordered, 3 head of queue. */
  readonly attribute?: number;
  readonly immediate?: boolean;
}

interface Waiting {
  readonly data: Buffer;
  /** Undefined: R2Ts are the test's affair. */
  readonly dataOut: Uint8Array | undefined;
  readonly lun: number;
  dataIns: number;
  r2ts: number;
  readonly sequences: number[];
  /** Bytes of the sequence under way. */
  sequence: number;
  received: number;
  resolve(result: CommandResult): void;
  reject(error: Error): void;
}

const DEFAULT_KEYS: Readonly<Record<string, string>> = {
  HeaderDigest: 'None',
  DataDigest: 'None',
  MaxRecvDataSegmentLength: '262144',
  InitialR2T: 'No',
  ImmediateData: 'Yes',
  MaxBurstLength: '1048576',
  FirstBurstLength: '65536',
  MaxOutstandingR2T: '4',
  DefaultTime2Wait: '2',
  DefaultTime2Retain: '0',
  ErrorRecoveryLevel: '0',
};

export class LoginRefused extends Error {
  /** Class and detail. */
  readonly status: number;
  constructor(status: number) {
    super(`login refused with status 0x${status.toString(16).padStart(4, '0')}`);
    this.status = status;
  }
}

export class IscsiInitiator {
  /** Answers of the target in login. */
  readonly negotiated = new Map<string, string>();
  /** PDUs that answered nothing we sent: async messages, rejects, pings, unknown tags. */
  readonly unsolicited: Pdu[] = [];
  cmdSN = 1;
  expStatSN = 0;
  expCmdSN = 0;
  maxCmdSN = 0;
  tsih = 0;
  closed = false;
  blockSize = 512;
  /** Answers to pings of the target are sent. */
  answerPings = true;
  readonly #wire: Wire;
  readonly #decoder = new PduDecoder();
  readonly #commands = new Map<number, Waiting>();
  readonly #answers = new Map<number, { resolve(pdu: Pdu): void; reject(error: Error): void }>();
  readonly #watchers = new Set<() => void>();
  #login: ((pdu: Pdu) => void) | undefined;
  #loginFailed: ((error: Error) => void) | undefined;
  #nextTag = 1;
  #digests: { header?: typeof crc32c; data?: typeof crc32c } = {};

  constructor(wire: Wire) {
    this.#wire = wire;
  }

  /** Connects over TCP, logs in, and clears the unit attentions of LUN 0. */
  static async connect({ port, host, ...login }: ConnectOptions): Promise<IscsiInitiator> {
    const initiator = await connectInitiator(port, host);
    try {
      await initiator.login(login);
      if (login.target !== undefined) await initiator.becomeReady();
    } catch (error) {
      initiator.destroy();
      throw error;
    }
    return initiator;
  }

  /** Logs out and ends the connection. */
  async close(): Promise<void> {
    if (!this.closed) await this.logout();
    this.destroy();
  }

  // --- the wire ---

  /** Bytes from the target. */
  receive(bytes: Uint8Array): void {
    this.#decoder.push(bytes);
    for (let pdu = this.#decoder.next(); pdu !== undefined; pdu = this.#decoder.next()) this.#take(pdu);
    for (const watch of [...this.#watchers]) watch();
  }

  /** The connection is gone: all that waits fails. */
  gone(): void {
    if (this.closed) return;
    this.closed = true;
    const error = new Error('the target closed the connection');
    for (const waiting of this.#commands.values()) waiting.reject(error);
    for (const waiting of this.#answers.values()) waiting.reject(error);
    this.#loginFailed?.(error);
    for (const watch of [...this.#watchers]) watch();
  }

  /** Ends the connection without logout. */
  destroy(): void {
    this.#wire.destroy();
    this.gone();
  }

  sendBytes(bytes: Uint8Array): void {
    this.#wire.write(bytes);
  }

  /** Sends a PDU with digests as negotiated. */
  send(fields: PduFields): void {
    this.#wire.write(encodePdu({ expStatSN: this.expStatSN, ...fields }, this.#digests));
  }

  /** Sends a PDU and waits for the answer with its tag. */
  ask(fields: PduFields): Promise<Pdu> {
    return new Promise((resolve, reject) => {
      this.#answers.set(fields.itt as number, { resolve, reject });
      this.send(fields);
    });
  }

  newTag(): number {
    return this.#nextTag++;
  }

  /** Resolves when a condition holds; it is looked at after every chunk. @throws when the connection ends first */
  async until(condition: () => boolean, timeoutMs = 10_000): Promise<void> {
    if (condition()) return;
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => finish(new Error(`waited ${timeoutMs} ms in vain`)), timeoutMs);
      const finish = (error?: Error): void => {
        clearTimeout(timer);
        this.#watchers.delete(look);
        if (error === undefined) resolve();
        else reject(error);
      };
      const look = (): void => {
        if (condition()) finish();
        else if (this.closed) finish(new Error('the connection ended'));
      };
      this.#watchers.add(look);
    });
  }

  // --- login and logout ---

  /** @throws {LoginRefused} */
  async login(options: LoginOptions = {}): Promise<void> {
    const { isid = '00023d000001', user, secret } = options;
    this.cmdSN = options.cmdSN ?? 1;
    const who: Record<string, string> = {
      InitiatorName: options.name ?? 'iqn.2026-11.lunette.test:initiator',
      SessionType: options.target === undefined ? 'Discovery' : 'Normal',
      ...(options.target === undefined ? {} : { TargetName: options.target }),
    };
    const say = (flags: number, keys: Record<string, string>) => this.#sayLogin(flags, keys, isid, options);
    if (user === undefined) {
      await say(0x81, { ...who, AuthMethod: 'None' });
    } else {
      await say(0x01, { ...who, AuthMethod: 'CHAP,None' });
      const asked = await say(0x01, { CHAP_A: options.algorithms ?? '5' });
      const challenge = Buffer.from((asked.get('CHAP_C') as string).slice(2), 'hex');
      const hash = HASHES[asked.get('CHAP_A') as string] as string;
      const answer = chap(hash, Number(asked.get('CHAP_I')), secret as string, challenge);
      const ours = Buffer.alloc(16, 7);
      const mutual = options.targetSecret === undefined ? {} : { CHAP_I: '42', CHAP_C: `0x${ours.toString('hex')}` };
      const proof = await say(0x81, { CHAP_N: user, CHAP_R: `0x${answer.toString('hex')}`, ...mutual });
      if (options.targetSecret !== undefined) {
        const expected = `0x${chap(hash, 42, options.targetSecret, ours).toString('hex')}`;
        if (proof.get('CHAP_R') !== expected) throw new Error('the target does not prove who it is');
      }
    }
    const keys = { ...DEFAULT_KEYS, ...options.keys };
    await say(0x87, keys);
    if (this.negotiated.get('HeaderDigest') === 'CRC32C') this.#digests.header = crc32c;
    if (this.negotiated.get('DataDigest') === 'CRC32C') this.#digests.data = crc32c;
    this.#decoder.headerDigest = this.#digests.header !== undefined;
    this.#decoder.dataDigest = this.#digests.data !== undefined;
  }

  /** One Login Request and its response; a continued one is collected. */
  async #sayLogin(
    flags: number,
    keys: Readonly<Record<string, string>>,
    isid: string,
    options: LoginOptions,
  ): Promise<Map<string, string>> {
    const pdu = await this.sayLogin({ flags, data: textBytes(keys), isid, tsih: options.tsih, cid: options.cid });
    const status = pdu.bytes.readUInt16BE(36);
    if (status !== 0) throw new LoginRefused(status);
    this.tsih = pdu.bytes.readUInt16BE(14);
    const text = textOf(pdu.data);
    for (const [key, value] of text) this.negotiated.set(key, value);
    return text;
  }

  /** Sends one Login Request as it is told and gives the response. */
  sayLogin(request: {
    flags: number;
    data: Uint8Array;
    isid?: string | undefined;
    tsih?: number | undefined;
    cid?: number | undefined;
    itt?: number;
    version?: number;
  }): Promise<Pdu> {
    return new Promise((resolve, reject) => {
      this.#login = resolve;
      this.#loginFailed = reject;
      const bytes = encodePdu({
        opcode: 0x03,
        immediate: true,
        flags: request.flags,
        itt: request.itt ?? 0,
        word20: (request.cid ?? 0) * 0x10000,
        cmdSN: this.cmdSN,
        expStatSN: this.expStatSN,
        data: request.data,
      });
      bytes[3] = request.version ?? 0;
      Buffer.from(request.isid ?? '00023d000001', 'hex').copy(bytes, 8);
      bytes.writeUInt16BE(request.tsih ?? 0, 14);
      this.#wire.write(bytes);
    });
  }

  /** Logs out and gives the response code. */
  async logout(reason = 0): Promise<number> {
    const pdu = await this.ask({
      opcode: 0x06,
      immediate: true,
      flags: 0x80 | reason,
      itt: this.newTag(),
      cmdSN: this.cmdSN,
    });
    return pdu.bytes[2] as number;
  }

  // --- requests ---

  /** Sends a command; any number may be under way. */
  command(cdb: readonly number[] | Uint8Array, options: CommandOptions = {}): Promise<CommandResult> {
    const tag = this.newTag();
    const dataOut = options.dataOut ?? new Uint8Array(0);
    const length = options.expectedLength ?? (dataOut.length > 0 ? dataOut.length : (options.readLength ?? 0));
    const writes = dataOut.length > 0;
    const firstBurst = Math.min(Number(this.negotiated.get('FirstBurstLength') ?? 65536), dataOut.length);
    const unasked = this.negotiated.get('InitialR2T') === 'No' ? firstBurst : 0;
    const segment = Number(this.negotiated.get('MaxRecvDataSegmentLength') ?? 8192);
    const immediate = this.negotiated.get('ImmediateData') === 'Yes' ? Math.min(firstBurst, segment) : 0;
    const more = writes && unasked > immediate;
    const flags =
      (more ? 0 : 0x80) | ((options.readLength ?? 0) > 0 ? 0x40 : 0) | (writes ? 0x20 : 0) | (options.attribute ?? 1);
    const result = this.#expect(tag, options.readLength ?? 0, dataOut, options.lun ?? 0);
    this.send({
      opcode: 0x01,
      immediate: options.immediate ?? false,
      flags,
      itt: tag,
      word20: length,
      cmdSN: this.cmdSN,
      cdb: Uint8Array.from({ length: 16 }, (_, i) => cdb[i] ?? 0),
      lun: options.lun ?? 0,
      data: dataOut.subarray(0, immediate),
    });
    if (options.immediate !== true) this.cmdSN = (this.cmdSN + 1) >>> 0;
    if (more) this.#sendData(tag, 0xffffffff, dataOut, immediate, unasked, options.lun ?? 0);
    return result;
  }

  /** The result of a command that the test sends by itself, under a tag of its own. Its R2Ts are left among the unsolicited PDUs. */
  expect(tag: number, readLength = 0): Promise<CommandResult> {
    return this.#expect(tag, readLength, undefined, 0);
  }

  #expect(tag: number, readLength: number, dataOut: Uint8Array | undefined, lun: number): Promise<CommandResult> {
    return new Promise((resolve, reject) => {
      if (this.closed) {
        reject(new Error('the connection is closed'));
        return;
      }
      const data = Buffer.alloc(readLength);
      this.#commands.set(tag, {
        data,
        dataOut,
        lun,
        dataIns: 0,
        r2ts: 0,
        sequences: [],
        sequence: 0,
        received: 0,
        resolve,
        reject,
      });
    });
  }

  /** Data-Out PDUs for [from, to). */
  #sendData(tag: number, transferTag: number, data: Uint8Array, from: number, to: number, lun: number): void {
    const segment = Number(this.negotiated.get('MaxRecvDataSegmentLength') ?? 8192);
    let dataSN = 0;
    for (let at = from; at < to; at += segment) {
      const end = Math.min(at + segment, to);
      this.send({
        opcode: 0x05,
        flags: end === to ? 0x80 : 0,
        itt: tag,
        word20: transferTag,
        word36: dataSN++,
        word40: at,
        lun,
        data: data.subarray(at, end),
      });
    }
  }

  async read(lba: number, blocks: number, lun = 0): Promise<Buffer> {
    const result = await this.command(cdb16(0x88, lba, blocks), { readLength: blocks * this.blockSize, lun });
    return mustBeGood(result, 'READ(16)').data;
  }

  async write(lba: number, data: Uint8Array, { fua = false, lun = 0 } = {}): Promise<void> {
    const cdb = cdb16(0x8a, lba, data.length / this.blockSize);
    if (fua) cdb[1] = 0x08;
    mustBeGood(await this.command(cdb, { dataOut: data, lun }), 'WRITE(16)');
  }

  async flush(lun = 0): Promise<void> {
    mustBeGood(await this.command(cdb16(0x91, 0, 0), { lun }), 'SYNCHRONIZE CACHE(16)');
  }

  async unmap(lba: number, blocks: number, lun = 0): Promise<void> {
    const list = Buffer.alloc(24);
    list.writeUInt16BE(22, 0);
    list.writeUInt16BE(16, 2);
    list.writeBigUInt64BE(BigInt(lba), 8);
    list.writeUInt32BE(blocks, 16);
    mustBeGood(await this.command([0x42, 0, 0, 0, 0, 0, 0, 0, 24], { dataOut: list, lun }), 'UNMAP');
  }

  /** Clears unit attentions: TEST UNIT READY until it is good. */
  async becomeReady(lun = 0): Promise<void> {
    for (let i = 0; i < 8; i++) if ((await this.command([0], { lun })).status === 0) return;
    throw new Error(`LUN ${lun} does not become ready`);
  }

  /** Task management: the response code. */
  async manage(
    action: number,
    { lun = 0, tag = 0xffffffff, refCmdSN = 0 }: { lun?: number; tag?: number; refCmdSN?: number } = {},
  ): Promise<number> {
    const pdu = await this.ask({
      opcode: 0x02,
      immediate: true,
      flags: 0x80 | action,
      itt: this.newTag(),
      word20: tag,
      cmdSN: this.cmdSN,
      word32: refCmdSN,
      lun,
    });
    return pdu.bytes[2] as number;
  }

  /** NOP-Out with data: what comes back. */
  async ping(data: Uint8Array = new Uint8Array(0)): Promise<Buffer> {
    const pdu = await this.ask({
      opcode: 0x00,
      immediate: true,
      itt: this.newTag(),
      word20: 0xffffffff,
      cmdSN: this.cmdSN,
      data,
    });
    return pdu.data;
  }

  /** A text request in one PDU, with the whole of a continued answer. */
  async text(pairs: Readonly<Record<string, string>>): Promise<string> {
    let answer = '';
    let data: Uint8Array = textBytes(pairs);
    let transferTag = 0xffffffff;
    const tag = this.newTag();
    for (;;) {
      const pdu = await this.ask({
        opcode: 0x04,
        immediate: true,
        itt: tag,
        word20: transferTag,
        cmdSN: this.cmdSN,
        data,
      });
      answer += pdu.data.toString();
      if ((pdu.flags & 0x80) !== 0) return answer;
      transferTag = pdu.bytes.readUInt32BE(20);
      data = new Uint8Array(0);
    }
  }

  // --- what comes in ---

  #take(pdu: Pdu): void {
    const { bytes, opcode } = pdu;
    const tag = bytes.readUInt32BE(16);
    this.expCmdSN = bytes.readUInt32BE(28);
    this.maxCmdSN = bytes.readUInt32BE(32);
    const carriesStatus =
      opcode === 0x25 ? (pdu.flags & 1) !== 0 : opcode !== 0x31 && !(opcode === 0x20 && tag === 0xffffffff);
    if (carriesStatus) this.expStatSN = (bytes.readUInt32BE(24) + 1) >>> 0;
    if (opcode === 0x23) {
      this.#login?.(pdu);
      return;
    }
    const command = this.#commands.get(tag);
    if (command !== undefined && (opcode === 0x21 || opcode === 0x25 || opcode === 0x31)) {
      this.#takeForCommand(pdu, tag, command);
      return;
    }
    const answer = this.#answers.get(tag);
    if (answer !== undefined && tag !== 0xffffffff) {
      this.#answers.delete(tag);
      answer.resolve(pdu);
      return;
    }
    this.unsolicited.push(pdu);
    if (opcode === 0x20 && tag === 0xffffffff && this.answerPings) {
      this.send({ opcode: 0x00, immediate: true, itt: 0xffffffff, word20: bytes.readUInt32BE(20), cmdSN: this.cmdSN });
    }
  }

  #takeForCommand(pdu: Pdu, tag: number, command: Waiting): void {
    const { bytes, opcode, data } = pdu;
    if (opcode === 0x31) {
      command.r2ts++;
      if (command.dataOut === undefined) {
        this.unsolicited.push(pdu);
        return;
      }
      const offset = bytes.readUInt32BE(40);
      const end = offset + bytes.readUInt32BE(44);
      this.#sendData(tag, bytes.readUInt32BE(20), command.dataOut, offset, end, command.lun);
      return;
    }
    if (opcode === 0x25) {
      if (bytes.readUInt32BE(36) !== command.dataIns) throw new Error(`DataSN ${bytes.readUInt32BE(36)} of a Data-In`);
      command.dataIns++;
      command.sequence += data.length;
      if ((pdu.flags & 0x80) !== 0) {
        command.sequences.push(command.sequence);
        command.sequence = 0;
      }
      data.copy(command.data, bytes.readUInt32BE(40));
      command.received = Math.max(command.received, bytes.readUInt32BE(40) + data.length);
      if ((pdu.flags & 1) === 0) return;
    }
    this.#commands.delete(tag);
    const count = bytes.readUInt32BE(44);
    const sense = opcode === 0x21 && data.length > 2 ? data.subarray(2, 2 + data.readUInt16BE(0)) : Buffer.alloc(0);
    command.resolve({
      status: bytes[3] as number,
      sense,
      data: command.data.subarray(0, command.received),
      residual: (pdu.flags & 4) !== 0 ? count : (pdu.flags & 2) !== 0 ? -count : 0,
      dataIns: command.dataIns,
      r2ts: command.r2ts,
      sequences: command.sequences,
    });
  }
}

const HASHES: Readonly<Record<string, string>> = { 5: 'md5', 6: 'sha1', 7: 'sha256', 8: 'sha3-256' };

function chap(hash: string, identifier: number, secret: string, challenge: Uint8Array): Buffer {
  return createHash(hash)
    .update(Buffer.from([identifier]))
    .update(secret)
    .update(challenge)
    .digest();
}

/** A 16-byte CDB with a 64-bit LBA and a 32-bit length. */
export function cdb16(opcode: number, lba: number, blocks: number): Buffer {
  const cdb = Buffer.alloc(16);
  cdb[0] = opcode;
  cdb.writeBigUInt64BE(BigInt(lba), 2);
  cdb.writeUInt32BE(blocks, 10);
  return cdb;
}

function mustBeGood(result: CommandResult, what: string): CommandResult {
  if (result.status === 0) return result;
  const sense = result.sense;
  const code = sense.length >= 14 ? [sense[2], sense[12], sense[13]].map((n) => (n ?? 0).toString(16)).join('/') : '';
  throw new Error(`${what}: status 0x${result.status.toString(16)} ${code}`);
}

export interface ConnectOptions extends LoginOptions {
  readonly host?: string;
  readonly port: number;
}

/** Connects over TCP, without logging in. */
export function connectInitiator(port: number, host = '127.0.0.1'): Promise<IscsiInitiator> {
  return new Promise((resolve, reject) => {
    const socket = connectSocket({ port, host, noDelay: true });
    const initiator = new IscsiInitiator({
      write: (bytes) => void socket.write(bytes),
      destroy: () => void socket.destroy(),
    });
    socket.once('connect', () => resolve(initiator));
    socket.on('data', (chunk: Buffer) => initiator.receive(chunk));
    socket.on('error', reject);
    socket.on('close', () => initiator.gone());
  });
}
