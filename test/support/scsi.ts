/**
 * An initiator without a transport: sends CDBs to a device server the way a transport does, and tells what came of it.
 */

import assert from 'node:assert/strict';
import { IoVec } from '../../formats/core/iov.ts';
import { ChainImage } from '../../formats/image/chain.ts';
import { RawLayer } from '../../formats/raw/raw.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { ScsiDevice } from '../../src/scsi/device.ts';
import { parseSense } from '../../src/scsi/sense.ts';
import type { Nexus, ScsiTask, TaskAttribute } from '../../src/scsi/task.ts';
import type { UnitOptions } from '../../src/scsi/unit.ts';
import { ClusterLayer } from './cluster-layer.ts';

export interface Outcome {
  status: number;
  /** key << 16 | asc << 8 | ascq; undefined without sense data. */
  sense: number | undefined;
  senseBytes: Uint8Array;
  data: Uint8Array;
  transferLength: number;
  /** The command completed in the tick in which it was sent. */
  now: boolean;
  aborted: boolean;
}

export interface SendOptions {
  lun?: number;
  out?: Uint8Array;
  /** Bytes that the initiator expects to move; default: as many as the command does. */
  expected?: number;
  attribute?: TaskAttribute;
  tag?: number;
}

let nextNexus = 1;
let nextTag = 1;

/** A task as a transport would fill it in. */
export function makeTask(nexus: Nexus, cdb: ArrayLike<number>, options: SendOptions = {}): ScsiTask {
  const padded = new Uint8Array(Math.max(16, cdb.length));
  padded.set(cdb);
  return {
    nexus,
    lun: options.lun ?? 0,
    cdb: padded,
    attribute: options.attribute ?? 0,
    tag: options.tag ?? nextTag++,
    expectedLength: 0,
    dataOutLength: 0,
    dataInLength: 0,
    dataOut: new IoVec(),
    dataIn: new IoVec(),
    status: 0xff,
    sense: new Uint8Array(252),
    senseLength: 0,
    dataInUsed: 0,
    transferLength: 0,
    aborted: false,
  };
}

/** A nexus of iSCSI, for a name and an ISID. */
export function makeNexus(name = 'iqn.2026-11.example:a', isid = '000000000001'): Nexus {
  const initiatorPort = `${name},i,0x${isid}`;
  const text = Buffer.from(`${initiatorPort}\0`);
  const transportId = new Uint8Array(4 + Math.max(20, Math.ceil(text.length / 4) * 4));
  transportId[0] = 0x45;
  transportId[3] = transportId.length - 4;
  transportId.set(text, 4);
  return { initiatorPort, transportId, relativeTargetPort: 1, id: nextNexus++ };
}

export class Initiator {
  readonly device: ScsiDevice;
  readonly nexus: Nexus;

  constructor(device: ScsiDevice, nexus = makeNexus()) {
    this.device = device;
    this.nexus = nexus;
    device.attach(nexus);
  }

  async send(cdb: ArrayLike<number>, options: SendOptions = {}): Promise<Outcome> {
    const task = makeTask(this.nexus, cdb, options);
    this.device.plan(task);
    const wanted = options.out?.length ?? 0;
    task.expectedLength = options.expected ?? (wanted > 0 ? wanted : task.dataInLength);
    const out = Math.min(task.expectedLength, task.dataOutLength, wanted);
    if (out > 0) {
      // In two pieces, since transports gather that way.
      const bytes = options.out as Uint8Array;
      task.dataOut.append(bytes, 0, Math.min(out, 100));
      task.dataOut.append(bytes, Math.min(out, 100), Math.max(0, out - 100));
    }
    const room = Math.min(task.expectedLength, task.dataInLength);
    const memory = new Uint8Array(room).fill(0xee);
    if (room > 0)
      task.dataIn.append(memory, 0, Math.min(room, 7)).append(memory, Math.min(room, 7), room - Math.min(room, 7));
    const pending = this.device.execute(task);
    await pending;
    const senseBytes = task.sense.slice(0, task.senseLength);
    return {
      status: task.status,
      sense: task.senseLength > 0 ? parseSense(senseBytes) : undefined,
      senseBytes,
      data: memory.slice(0, task.dataInUsed),
      transferLength: task.transferLength,
      now: pending === undefined,
      aborted: task.aborted,
    };
  }

  /** Sends, and asserts GOOD. @returns the data */
  async good(cdb: ArrayLike<number>, options: SendOptions = {}): Promise<Uint8Array> {
    const { status, sense, data } = await this.send(cdb, options);
    assert.equal(status, 0, `status ${status}, sense ${sense?.toString(16)}`);
    return data;
  }

  /** Sends, and asserts CHECK CONDITION with this sense. */
  async refused(sense: number, cdb: ArrayLike<number>, options: SendOptions = {}): Promise<Outcome> {
    const outcome = await this.send(cdb, options);
    assert.equal(outcome.status, 2, `status ${outcome.status} instead of CHECK CONDITION`);
    assert.equal(outcome.sense?.toString(16), sense.toString(16));
    return outcome;
  }

  /** Takes pending unit attentions by TEST UNIT READY, as initiators do after a login. @returns their codes */
  async clearAttentions(lun = 0): Promise<number[]> {
    const codes: number[] = [];
    for (;;) {
      const { status, sense } = await this.send([0], { lun });
      if (status !== 2 || sense === undefined || sense >> 16 !== 6) return codes;
      codes.push(sense);
    }
  }
}

/** An image in memory: raw; or of clusters, where a discard works only on whole ones. */
export function memoryImage(options: { size?: number; clusterSize?: number; readOnly?: boolean } = {}): ChainImage {
  const { size = 1024 * 1024, clusterSize, readOnly = false } = options;
  if (clusterSize !== undefined) return new ChainImage([new ClusterLayer({ size, clusterSize, readOnly })]);
  return new ChainImage([new RawLayer(new MemoryStorage({ bytes: new Uint8Array(size) }), readOnly)]);
}

export interface Bench {
  device: ScsiDevice;
  image: UnitOptions['image'];
  /** Logged in, attentions taken. */
  initiator: Initiator;
}

/** A device with one unit at LUN 0 and an initiator that has logged in. */
export async function makeBench(options: Partial<UnitOptions> = {}): Promise<Bench> {
  const device = new ScsiDevice({ name: 'iqn.2026-11.lunette.host:test' });
  const image = options.image ?? memoryImage();
  device.addUnit(0, { identity: 'test unit', ...options, image });
  const initiator = new Initiator(device);
  await initiator.clearAttentions();
  return { device, image, initiator };
}

/** A second initiator on the same device, attentions taken. */
export async function another(device: ScsiDevice, name = 'iqn.2026-11.example:b'): Promise<Initiator> {
  const initiator = new Initiator(device, makeNexus(name));
  await initiator.clearAttentions();
  return initiator;
}

function be(value: number, length: number): number[] {
  const bytes: number[] = [];
  for (let i = length - 1; i >= 0; i--) bytes.push(Math.floor(value / 256 ** i) % 256);
  return bytes;
}

/** CDBs of commands that address blocks, by size. */
export const OPCODES = {
  read: { 6: 0x08, 10: 0x28, 12: 0xa8, 16: 0x88 },
  write: { 6: 0x0a, 10: 0x2a, 12: 0xaa, 16: 0x8a },
  verify: { 10: 0x2f, 12: 0xaf, 16: 0x8f },
  writeVerify: { 10: 0x2e, 12: 0xae, 16: 0x8e },
  writeSame: { 10: 0x41, 16: 0x93 },
  prefetch: { 10: 0x34, 16: 0x90 },
  synchronize: { 10: 0x35, 16: 0x91 },
  orWrite: { 16: 0x8b },
} as const;

/** A CDB with LBA and length where its size has them. */
export function blockCdb(opcode: number, lba: number, blocks: number, flags = 0): number[] {
  const group = opcode >> 5;
  if (group === 0) return [opcode, (lba >> 16) & 0x1f, ...be(lba % 65536, 2), blocks % 256, 0];
  if (group === 4) return [opcode, flags, ...be(lba, 8), ...be(blocks, 4), 0, 0];
  if (group === 5) return [opcode, flags, ...be(lba, 4), ...be(blocks, 4), 0, 0];
  return [opcode, flags, ...be(lba, 4), 0, ...be(blocks, 2), 0];
}

export const cdb = {
  testUnitReady: [0],
  requestSense: (flags = 0) => [0x03, flags, 0, 0, 252, 0],
  inquiry: (page?: number, length = 255) => [0x12, page === undefined ? 0 : 1, page ?? 0, ...be(length, 2), 0],
  modeSense6: (page: number, control = 0, flags = 0, length = 255) => [
    0x1a,
    flags,
    (control << 6) | page,
    0,
    length,
    0,
  ],
  modeSense10: (page: number, control = 0, flags = 0) => [0x5a, flags, (control << 6) | page, 0, 0, 0, 0, 2, 0, 0],
  modeSelect6: (length: number, flags = 0x10) => [0x15, flags, 0, 0, length, 0],
  modeSelect10: (length: number, flags = 0x10) => [0x55, flags, 0, 0, 0, 0, 0, ...be(length, 2), 0],
  readCapacity10: () => [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
  readCapacity16: (length = 32) => [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, ...be(length, 4), 0, 0],
  getLbaStatus: (lba: number, length = 4104) => [0x9e, 0x12, ...be(lba, 8), ...be(length, 4), 0, 0],
  read10: (lba: number, blocks: number, flags = 0) => blockCdb(0x28, lba, blocks, flags),
  write10: (lba: number, blocks: number, flags = 0) => blockCdb(0x2a, lba, blocks, flags),
  read16: (lba: number, blocks: number, flags = 0) => blockCdb(0x88, lba, blocks, flags),
  compareAndWrite: (lba: number, blocks: number, flags = 0) => [0x89, flags, ...be(lba, 8), 0, 0, 0, blocks, 0, 0],
  unmap: (length: number, flags = 0) => [0x42, flags, 0, 0, 0, 0, 0, ...be(length, 2), 0],
  reportLuns: (select = 0, length = 4096) => [0xa0, 0, select, 0, 0, 0, ...be(length, 4), 0, 0],
  startStop: (flags: number, immediate = 0) => [0x1b, immediate, 0, 0, flags, 0],
  preventAllow: (prevent: number) => [0x1e, 0, 0, 0, prevent, 0],
  reserve6: [0x16, 0, 0, 0, 0, 0],
  release6: [0x17, 0, 0, 0, 0, 0],
  prIn: (action: number, length = 4096) => [0x5e, action, 0, 0, 0, 0, 0, ...be(length, 2), 0],
  prOut: (action: number, type = 0, length = 24) => [0x5f, action, type, 0, 0, ...be(length, 4), 0],
  opcodes: (options: number, opcode = 0, action = 0) => [
    0xa3,
    0x0c,
    options,
    opcode,
    ...be(action, 2),
    ...be(65536, 4),
    0,
    0,
  ],
};

/** UNMAP's parameter list. */
export function unmapList(...ranges: readonly (readonly [lba: number, blocks: number])[]): Uint8Array {
  return Uint8Array.from([
    ...be(6 + ranges.length * 16, 2),
    ...be(ranges.length * 16, 2),
    0,
    0,
    0,
    0,
    ...ranges.flatMap(([lba, blocks]) => [...be(lba, 8), ...be(blocks, 4), 0, 0, 0, 0]),
  ]);
}
