import { read16, read32, write16, write32 } from './bytes.ts';
import { MAX_PARAMETER_OUT, type Outcome } from './command.ts';
import { isAllRegistrants, isReservationType } from './reservation-state.ts';
import { NO_KEY, ReservationConflict } from './reservations.ts';
import { CheckCondition, invalidField, invalidParameter, PARAMETER_LIST_LENGTH_ERROR } from './sense.ts';
import type { ScsiTask } from './task.ts';
import { parseTransportId, type TransportId } from './transport-id.ts';
import { type LogicalUnit, respond } from './unit.ts';

/** Service actions of PERSISTENT RESERVE OUT (SPC-4 table 222). */
export const REGISTER = 0;
export const RESERVE = 1;
export const RELEASE = 2;
export const CLEAR = 3;
export const PREEMPT = 4;
export const PREEMPT_AND_ABORT = 5;
export const REGISTER_AND_IGNORE = 6;
export const REGISTER_AND_MOVE = 7;

const BASIC_LENGTH = 24;

/** READ KEYS: every registered key. */
export function readKeys(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseWhileReserved6(unit);
  const { generation, registrations } = unit.reservations.state;
  const data = Buffer.alloc(8 + registrations.length * 8);
  write32(data, 0, generation);
  write32(data, 4, data.length - 8);
  registrations.forEach((registration, index) => data.write(registration.key, 8 + index * 8, 'hex'));
  return respond(task, data, read16(task.cdb, 7));
}

/** READ RESERVATION: the one there is. */
export function readReservation(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseWhileReserved6(unit);
  const { generation, registrations, type, holder } = unit.reservations.state;
  const data = Buffer.alloc(type === 0 ? 8 : 24);
  write32(data, 0, generation);
  if (type !== 0) {
    write32(data, 4, 16);
    // All registrants hold it together: no key says who.
    data.write(registrations[holder]?.key ?? NO_KEY, 8, 'hex');
    data[21] = type;
  }
  return respond(task, data, read16(task.cdb, 7));
}

export function reportCapabilities(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseWhileReserved6(unit);
  const data = new Uint8Array(8);
  const { persistent, state } = unit.reservations;
  write16(data, 0, 8);
  data[2] = 0x10 | 0x08 | 0x04 | (persistent ? 0x01 : 0); // CRH, SIP_C, ATP_C, PTPL_C
  data[3] = 0x80 | (state.persist ? 0x01 : 0); // TMV, PTPL_A
  data[4] = 0xea; // WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX
  data[5] = 0x01; // EX_AC_AR
  return respond(task, data, read16(task.cdb, 7));
}

/** READ FULL STATUS: who is registered, from where, and who holds what. */
export function readFullStatus(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseWhileReserved6(unit);
  const { generation, registrations, type, holder } = unit.reservations.state;
  const parts = registrations.map((registration, index) => {
    const part = Buffer.alloc(BASIC_LENGTH + registration.transportId.length);
    const holds = type !== 0 && (isAllRegistrants(type) || index === holder);
    part.write(registration.key, 0, 'hex');
    part[12] = (registration.relativeTargetPort === 0 ? 0x02 : 0) | (holds ? 0x01 : 0);
    if (holds) part[13] = type;
    write16(part, 18, registration.relativeTargetPort);
    write32(part, 20, registration.transportId.length);
    part.set(registration.transportId, BASIC_LENGTH);
    return part;
  });
  const data = Buffer.concat([Buffer.alloc(8), ...parts]);
  write32(data, 0, generation);
  write32(data, 4, data.length - 8);
  return respond(task, data, read16(task.cdb, 7));
}

/** PERSISTENT RESERVE OUT, all service actions. */
export function persistentReserveOut(unit: LogicalUnit, task: ScsiTask): Outcome {
  refuseWhileReserved6(unit);
  const { cdb, nexus } = task;
  const { reservations } = unit;
  const action = (cdb[1] as number) & 0x1f;
  const list = parameterList(task, read32(cdb, 5));
  const key = hexKey(list, 0);
  const newKey = hexKey(list, 8);

  switch (action) {
    case REGISTER:
    case REGISTER_AND_IGNORE: {
      const flags = list[20] as number;
      const specifiesPorts = (flags & 0x08) !== 0;
      if (specifiesPorts && (action !== REGISTER || reservations.registrationOf(nexus) !== undefined))
        throw invalidParameter(20, 3);
      if (!specifiesPorts) exactLength(list, BASIC_LENGTH);
      const request = {
        key: action === REGISTER ? key : undefined,
        newKey,
        persist: aptpl(unit, flags, 20),
        allTargetPorts: (flags & 0x04) !== 0,
        ports: specifiesPorts ? parsePorts(list) : [],
      };
      return reservations.perform(() => reservations.register(nexus, request));
    }
    case RESERVE: {
      exactLength(list, BASIC_LENGTH);
      const type = reservationType(cdb);
      return reservations.perform(() => reservations.reserve(nexus, key, type));
    }
    case RELEASE: {
      exactLength(list, BASIC_LENGTH);
      const type = reservationType(cdb);
      return reservations.perform(() => reservations.release(nexus, key, type));
    }
    case CLEAR:
      exactLength(list, BASIC_LENGTH);
      return reservations.perform(() => reservations.clear(nexus, key));
    case PREEMPT:
    case PREEMPT_AND_ABORT: {
      exactLength(list, BASIC_LENGTH);
      return preempt(unit, task, key, newKey, action === PREEMPT_AND_ABORT);
    }
    default:
      return registerAndMove(unit, task, list);
  }
}

function preempt(unit: LogicalUnit, task: ScsiTask, key: string, target: string, abort: boolean): Outcome {
  const { reservations } = unit;
  const type = reservationType(task.cdb);
  let ended: Promise<void>[] = [];
  const done = reservations.perform(() =>
    reservations.preempt(task.nexus, key, target, type, (nexuses) => {
      if (abort) ended = nexuses.map((nexus) => unit.tasks.abort({ nexus, except: task }).ended);
    }),
  );
  if (done === undefined && ended.length === 0) return undefined;
  return (async () => {
    await done;
    await Promise.all(ended);
  })();
}

function registerAndMove(unit: LogicalUnit, task: ScsiTask, list: Uint8Array): Outcome {
  const { reservations, surroundings } = unit;
  const flags = list[17] as number;
  const relativeTargetPort = read16(list, 18);
  const length = read32(list, 20);
  if (length !== list.length - BASIC_LENGTH) throw invalidParameter(20);
  const id = parseTransportId(list, BASIC_LENGTH);
  if (id === undefined || id.bytes.length !== length) throw invalidParameter(BASIC_LENGTH);
  if (!surroundings.ports.some((port) => port.id === relativeTargetPort)) throw invalidParameter(18);
  const request = {
    key: hexKey(list, 0),
    newKey: hexKey(list, 8),
    persist: aptpl(unit, flags, 17),
    unregister: (flags & 0x02) !== 0,
    relativeTargetPort,
    ...id,
    transportId: id.bytes,
  };
  return reservations.perform(() => reservations.move(task.nexus, request));
}

/** The whole parameter list, as long as the CDB says. */
function parameterList(task: ScsiTask, length: number): Uint8Array {
  if (length < BASIC_LENGTH || length > MAX_PARAMETER_OUT || task.dataOut.byteLength < length)
    throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  task.transferLength = length;
  return task.dataOut.contiguous().subarray(0, length);
}

function exactLength(list: Uint8Array, length: number): void {
  if (list.length !== length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
}

/** SPEC_I_PT: a list of TransportIDs behind its length. */
function parsePorts(list: Uint8Array): TransportIdEntry[] {
  if (list.length < BASIC_LENGTH + 4) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  const end = BASIC_LENGTH + 4 + read32(list, BASIC_LENGTH);
  if (end !== list.length) throw new CheckCondition(PARAMETER_LIST_LENGTH_ERROR);
  const ports: TransportIdEntry[] = [];
  for (let at = BASIC_LENGTH + 4; at < end; ) {
    const id: TransportId | undefined = parseTransportId(list, at);
    if (id === undefined) throw invalidParameter(at);
    ports.push({ port: id.port, transportId: id.bytes });
    at += id.bytes.length;
  }
  return ports;
}

interface TransportIdEntry {
  port: string;
  transportId: Uint8Array;
}

/** APTPL, refused where there is nothing to keep reservations in. */
function aptpl(unit: LogicalUnit, flags: number, byte: number): boolean {
  const wanted = (flags & 0x01) !== 0;
  if (wanted && !unit.reservations.persistent) throw invalidParameter(byte, 0);
  return wanted;
}

/** The TYPE field; SCOPE must be the logical unit. */
function reservationType(cdb: Uint8Array): number {
  const field = cdb[2] as number;
  if (field >> 4 !== 0) throw invalidField(2, 7);
  const type = field & 0x0f;
  if (!isReservationType(type)) throw invalidField(2, 3);
  return type;
}

function hexKey(list: Uint8Array, at: number): string {
  return Buffer.from(list.buffer, list.byteOffset + at, 8).toString('hex');
}

/** While somebody holds RESERVE(6), persistent reservations are out of reach for everybody (SPC-2 section 5.5.3.1). */
function refuseWhileReserved6(unit: LogicalUnit): void {
  if (unit.reservations.reserved6) throw new ReservationConflict();
}
