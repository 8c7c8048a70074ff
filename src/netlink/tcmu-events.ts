import { numberOf, parseGenericMessage, textOf } from './genetlink.ts';

// Commands and attributes of the family TCM-USER (include/uapi/linux/target_core_user.h).
const ADDED = 1;
const REMOVED = 2;
const RECONFIGURED = 3;
const DEVICE = 1;
const MINOR = 2;
const DEVICE_CONFIG = 4;
const DEVICE_SIZE = 5;
const WRITE_CACHE = 6;
const DEVICE_ID = 8;

interface DeviceEvent {
  readonly deviceId: number;
  /** Of /dev/uioN. */
  readonly minor: number;
  /** `tcm-user/HBA/NAME/CONFIG`. */
  readonly name: string;
}

/** What a RECONFIG event wants to change: exactly one. */
export type DeviceChange = { readonly config: string } | { readonly size: number } | { readonly writeCache: boolean };

/** What the kernel says about a device. Each waits for an answer. */
export type TcmuEvent =
  | (DeviceEvent & { readonly kind: 'added' })
  | (DeviceEvent & { readonly kind: 'removed' })
  | (DeviceEvent & { readonly kind: 'reconfigured'; readonly change: DeviceChange | undefined });

/** Undefined when the message is none of a device. `change` is undefined for what this version does not know. */
export function parseTcmuEvent(bytes: Uint8Array): TcmuEvent | undefined {
  const message = parseGenericMessage(bytes);
  if (message === undefined) return undefined;
  const { command, attributes } = message;
  const deviceId = numberOf(attributes.get(DEVICE_ID));
  const minor = numberOf(attributes.get(MINOR));
  const name = textOf(attributes.get(DEVICE));
  if (deviceId === undefined || minor === undefined || name === undefined) return undefined;
  if (command === ADDED) return { kind: 'added', deviceId, minor, name };
  if (command === REMOVED) return { kind: 'removed', deviceId, minor, name };
  if (command !== RECONFIGURED) return undefined;
  return { kind: 'reconfigured', deviceId, minor, name, change: changeOf(attributes) };
}

function changeOf(attributes: ReadonlyMap<number, DataView>): DeviceChange | undefined {
  const config = textOf(attributes.get(DEVICE_CONFIG));
  if (config !== undefined) return { config };
  const size = numberOf(attributes.get(DEVICE_SIZE));
  if (size !== undefined) return { size };
  const writeCache = numberOf(attributes.get(WRITE_CACHE));
  return writeCache === undefined ? undefined : { writeCache: writeCache !== 0 };
}
