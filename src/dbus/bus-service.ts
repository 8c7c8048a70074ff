import type { EventEmitter } from 'node:events';
import dbus from 'dbus-next';
import { LunetteError } from '../../formats/core/errors.ts';
import { Ending } from './ending.ts';

type Message = dbus.Message;

/** Who calls a method. */
export interface Caller {
  /** Unique name on the bus. */
  readonly name: string;
}

/** A method of an interface, with its D-Bus signatures. */
export interface BusMethod {
  readonly in: string;
  readonly out: string;
  /** Names of arguments for introspection: those that go in, then those that come out. */
  readonly names: readonly string[];
  /** @returns the values that come out. What it throws but a BusError is answered as org.freedesktop.DBus.Error.Failed */
  call(values: readonly unknown[], caller: Caller): Promise<unknown[]> | unknown[];
}

/** A property that can be read. */
export interface BusProperty {
  readonly signature: string;
  get(): unknown;
}

export interface BusInterface {
  readonly methods?: Readonly<Record<string, BusMethod>>;
  readonly properties?: Readonly<Record<string, BusProperty>>;
}

const ERROR = 'org.freedesktop.DBus.Error.';
const PROPERTIES = 'org.freedesktop.DBus.Properties';
const INTROSPECTABLE = 'org.freedesktop.DBus.Introspectable';
const PEER = 'org.freedesktop.DBus.Peer';
const BUS_TIMEOUT_MS = 10_000;
/** Less than the 25 s after which GLib, and with it targetcli, gives up without a word of ours. */
const ANSWER_MS = 20_000;

/** A bus that has gone away is tried again after so long, then ever later, ms. */
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;

/** Answers to the request for a name (D-Bus specification). */
const PRIMARY_OWNER = 1;
const ALREADY_OWNER = 4;

/** What becomes of the connection after it was first made. */
export interface BusListener {
  /** It is gone, so that nobody can call; it is tried again until it is there. */
  lost(error: Error): void;
  /** It is there again, and our names with it. */
  back(): void;
  /** A name could not be had again; that is tried again as well. */
  refused(error: Error): void;
}

export interface BusOptions {
  /** How long a call waits for its answer, milliseconds. Default 20 s. */
  readonly answerMs?: number | undefined;
}

/** One connection: when a bus ends, all that belongs to it does. */
interface Connection {
  readonly bus: dbus.MessageBus;
  /** Calls that wait for an answer then would wait for ever. */
  readonly ending: Ending;
}

/**
 * Objects on a message bus, by path. Unlike the library's own service classes it tells methods who calls, which decides about what they may,
 * and it outlives the bus: what is on it, and its names, are there again when the bus is.
 */
export class BusService {
  readonly #listener: BusListener;
  readonly #answerMs: number;
  readonly #objects = new Map<string, Map<string, BusInterface>>();
  readonly #names = new Set<string>();
  #connection: Connection | undefined;
  #retry: NodeJS.Timeout | undefined;
  #closed = false;

  private constructor(listener: BusListener, { answerMs = ANSWER_MS }: BusOptions) {
    this.#listener = listener;
    this.#answerMs = answerMs;
  }

  /**
   * Connects to the system bus.
   *
   * @throws {LunetteError} UNAVAILABLE when there is no bus
   */
  static async connect(listener: BusListener, options: BusOptions = {}): Promise<BusService> {
    const service = new BusService(listener, options);
    try {
      await service.#connect();
    } catch (error) {
      throw new LunetteError('UNAVAILABLE', `the D-Bus system bus: ${(error as Error).message}`, {
        help: 'targetcli talks to us over it: start dbus.',
        cause: error,
      });
    }
    return service;
  }

  async #connect(): Promise<void> {
    const bus = dbus.systemBus();
    const ending = new Ending();
    const connection = { bus, ending };
    const end = (error: Error): void => {
      ending.end(error);
      this.#lost(connection, error);
    };
    bus.on('error', end);
    // The library tells of errors, but not of the end: that is the stream's.
    (bus as unknown as { _connection: EventEmitter })._connection.on('end', () => end(new Error('it has ended')));
    try {
      const connected = new Promise((resolve) => bus.once('connect', () => resolve(undefined)));
      await ending.before(connected, BUS_TIMEOUT_MS, () => new Error('it does not answer'));
    } catch (error) {
      bus.disconnect();
      throw error;
    }
    bus.addMethodHandler((message: Message) => this.#handle(bus, message));
    this.#connection = connection;
  }

  #lost(connection: Connection, error: Error): void {
    if (this.#closed || this.#connection !== connection) return;
    this.#connection = undefined;
    connection.bus.disconnect();
    this.#listener.lost(error);
    this.#reconnectAfter(FIRST_RETRY_MS);
  }

  #reconnectAfter(waitMs: number): void {
    const next = Math.min(2 * waitMs, LAST_RETRY_MS);
    this.#retry = setTimeout(async () => {
      try {
        if (this.#connection === undefined) await this.#connect();
        if (this.#closed) {
          this.#disconnect();
          return;
        }
      } catch {
        if (!this.#closed) this.#reconnectAfter(next);
        return;
      }
      try {
        for (const name of this.#names) await this.#request(name);
        this.#listener.back();
      } catch (error) {
        if (this.#closed || this.#connection === undefined) return;
        this.#listener.refused(error as Error);
        this.#reconnectAfter(next);
      }
    }, waitMs);
    this.#retry.unref();
  }

  /** Puts an interface on an object. */
  add(path: string, name: string, face: BusInterface): void {
    const faces = this.#objects.get(path) ?? new Map<string, BusInterface>();
    faces.set(name, face);
    this.#objects.set(path, faces);
  }

  /** Takes an object away. */
  remove(path: string): void {
    this.#objects.delete(path);
  }

  /** Takes a name, now or not at all. @throws {LunetteError} EXISTS when somebody else has it; ACCESS when the bus forbids it */
  async own(name: string): Promise<void> {
    await this.#request(name);
    this.#names.add(name);
  }

  /** Gives a name back. Never fails: with the connection it is gone anyway. */
  async disown(name: string): Promise<void> {
    if (!this.#names.delete(name)) return;
    await this.#use((bus) => bus.releaseName(name)).catch(() => undefined);
  }

  async #request(name: string): Promise<void> {
    let reply: number;
    try {
      reply = await this.#use((bus) => bus.requestName(name, dbus.NameFlag.DO_NOT_QUEUE));
    } catch (error) {
      throw new LunetteError('ACCESS', `the bus does not let us be ${name}: ${(error as Error).message}`, {
        help: 'A policy in /etc/dbus-1/system.d has to allow it; the package brings one.',
        cause: error,
      });
    }
    if (reply === PRIMARY_OWNER || reply === ALREADY_OWNER) return;
    throw new LunetteError('EXISTS', `another program is ${name} on the D-Bus system bus`, {
      help: 'Only one can serve TCMU devices: systemctl stop tcmu-runner.',
    });
  }

  /** Whether a caller's process runs as root. */
  async isRoot(caller: Caller): Promise<boolean> {
    try {
      return Number(await this.#ask('GetConnectionUnixUser', caller.name)) === 0;
    } catch {
      return false; // gone, or the bus does not know: nobody to trust
    }
  }

  /** Who has a name; undefined: nobody. */
  async ownerOf(name: string): Promise<string | undefined> {
    try {
      return String(await this.#ask('GetNameOwner', name));
    } catch {
      return undefined;
    }
  }

  /** Calls a method of another service. @throws {Error} the D-Bus error; {BusError} NO_REPLY when it does not answer in time */
  async call(
    destination: string,
    path: string,
    face: string,
    member: string,
    signature: string,
    body: readonly unknown[],
  ): Promise<readonly unknown[]> {
    const message = new dbus.Message({ destination, path, interface: face, member, signature, body: [...body] });
    return (await this.#use((bus) => bus.call(message), `${destination}: ${member}`))?.body ?? [];
  }

  /** Tells all who listen. */
  signal(path: string, face: string, name: string, signature: string, body: readonly unknown[]): void {
    this.#connection?.bus.send(dbus.Message.newSignal(path, face, name, signature, [...body]));
  }

  /** Gives the name back and disconnects. Safe to call twice. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#retry);
    this.#disconnect();
  }

  #disconnect(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.bus.disconnect();
  }

  /**
   * @param what who is asked for what
   * @throws {Error} what the call throws; that the connection is gone, now or before the answer came; that none came in time
   */
  #use<T>(work: (bus: dbus.MessageBus) => Promise<T>, what = 'the bus'): Promise<T> {
    const connection = this.#connection;
    if (connection === undefined) return Promise.reject(new Error('there is no connection to the bus'));
    const late = (): Error => new BusError(NO_REPLY, `${what}: no answer within ${this.#answerMs / 1000} s`);
    return connection.ending.before(work(connection.bus), this.#answerMs, late);
  }

  async #ask(member: string, argument: string): Promise<unknown> {
    const [value] = await this.call(
      'org.freedesktop.DBus',
      '/org/freedesktop/DBus',
      'org.freedesktop.DBus',
      member,
      's',
      [argument],
    );
    return value;
  }

  /** @returns true: nobody else is to answer */
  #handle(bus: dbus.MessageBus, message: Message): boolean {
    void this.#answer(message).then((answer) => {
      // Whoever called over a connection that is gone waits no more.
      if (this.#connection?.bus !== bus) return;
      try {
        bus.send(answer);
      } catch (error) {
        // Not what its signature says, as another program's answer may be that is passed on.
        bus.send(failureOf(message, error));
      }
    });
    return true;
  }

  async #answer(message: Message): Promise<Message> {
    try {
      const { out, values } = await this.#perform(message);
      return dbus.Message.newMethodReturn(message, out, values);
    } catch (error) {
      return failureOf(message, error);
    }
  }

  async #perform(message: Message): Promise<{ out: string; values: unknown[] }> {
    const { path, interface: face, member, sender, signature = '', body = [] } = message;
    if (face === PEER && member === 'Ping') return { out: '', values: [] };
    if (face === INTROSPECTABLE && member === 'Introspect') return { out: 's', values: [this.#introspect(path)] };
    const faces = this.#objects.get(path);
    if (faces === undefined) throw new BusError(`${ERROR}UnknownObject`, `there is no object ${path}`);
    if (face === PROPERTIES) return propertyCall(faces, member, body);
    const candidates = face === undefined || face === null ? [...faces.values()] : [faces.get(face)];
    const method = candidates.map((candidate) => candidate?.methods?.[member]).find((found) => found !== undefined);
    if (method === undefined)
      throw new BusError(`${ERROR}UnknownMethod`, `there is no method ${face}.${member} on ${path}`);
    if (signature !== method.in) {
      throw new BusError(`${ERROR}InvalidArgs`, `${member} takes (${method.in}), not (${signature})`);
    }
    return { out: method.out, values: await method.call(body, { name: sender ?? '' }) };
  }

  #introspect(path: string): string {
    const faces = [...(this.#objects.get(path) ?? new Map<string, BusInterface>())].map(describeInterface);
    const prefix = path === '/' ? '/' : `${path}/`;
    const children = new Set<string>();
    for (const other of this.#objects.keys()) {
      if (other.startsWith(prefix)) children.add(other.slice(prefix.length).split('/')[0] as string);
    }
    return [
      '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">',
      '<node>',
      `<interface name="${INTROSPECTABLE}"><method name="Introspect"><arg type="s" direction="out"/></method></interface>`,
      `<interface name="${PEER}"><method name="Ping"/></interface>`,
      `<interface name="${PROPERTIES}">`,
      '<method name="Get"><arg type="s" direction="in"/><arg type="s" direction="in"/><arg type="v" direction="out"/></method>',
      '<method name="GetAll"><arg type="s" direction="in"/><arg type="a{sv}" direction="out"/></method>',
      '</interface>',
      ...faces,
      ...[...children].sort().map((child) => `<node name="${child}"/>`),
      '</node>',
    ].join('\n');
  }
}

/** Of somebody who may not do what he asks for. */
export const ACCESS_DENIED = `${ERROR}AccessDenied`;

/** Of somebody who does not answer in time. */
export const NO_REPLY = `${ERROR}NoReply`;

/** An error with its whole name on the bus, for methods to throw. */
export class BusError extends Error {
  readonly busName: string;

  constructor(busName: string, message: string) {
    super(message);
    this.busName = busName;
  }
}

/** A value that says of which type it is, for `v`. 64-bit integers are bigint there. */
export function variant(signature: string, value: unknown): dbus.Variant {
  return new dbus.Variant(signature, signature === 't' ? BigInt(value as number) : value);
}

/** The values of an interface's properties, as `a{sv}`. */
export function propertiesOf(face: BusInterface): Record<string, dbus.Variant> {
  return Object.fromEntries(
    Object.entries(face.properties ?? {}).map(([name, { signature, get }]) => [
      name,
      new dbus.Variant(signature, get()),
    ]),
  );
}

/** The answer to a call that failed. */
function failureOf(message: Message, error: unknown): Message {
  const name = error instanceof BusError ? error.busName : `${ERROR}Failed`;
  // The library's types say that the message is a string, which it is not.
  const call = message as unknown as string;
  return dbus.Message.newError(call, name, error instanceof Error ? error.message : String(error));
}

function propertyCall(
  faces: ReadonlyMap<string, BusInterface>,
  member: string | undefined,
  body: readonly unknown[],
): { out: string; values: unknown[] } {
  const [name, property] = body.map(String);
  const face = faces.get(name ?? '');
  if (member === 'GetAll') return { out: 'a{sv}', values: [face === undefined ? {} : propertiesOf(face)] };
  if (member !== 'Get') throw new BusError(`${ERROR}PropertyReadOnly`, 'properties can be read only');
  const found = face?.properties?.[property ?? ''];
  if (found === undefined) throw new BusError(`${ERROR}UnknownProperty`, `there is no property ${name}.${property}`);
  return { out: 'v', values: [new dbus.Variant(found.signature, found.get())] };
}

function describeInterface([name, face]: readonly [string, BusInterface]): string {
  const methods = Object.entries(face.methods ?? {}).map(([method, { in: inputs, out, names }]) => {
    const types = [
      ...split(inputs).map((type) => ({ type, direction: 'in' })),
      ...split(out).map((type) => ({ type, direction: 'out' })),
    ];
    const args = types.map(
      ({ type, direction }, i) => `<arg name="${names[i] ?? `arg${i}`}" type="${type}" direction="${direction}"/>`,
    );
    return `<method name="${method}">${args.join('')}</method>`;
  });
  const properties = Object.entries(face.properties ?? {}).map(
    ([property, { signature }]) => `<property name="${property}" type="${signature}" access="read"/>`,
  );
  return `<interface name="${name}">${methods.join('')}${properties.join('')}</interface>`;
}

/** The complete types of a signature. */
function split(signature: string): string[] {
  const types: string[] = [];
  for (let at = 0; at < signature.length; ) {
    const start = at;
    while (signature[at] === 'a') at++;
    const open = signature[at];
    if (open === '{' || open === '(') {
      let depth = 0;
      do {
        const character = signature[at++];
        if (character === '{' || character === '(') depth++;
        else if (character === '}' || character === ')') depth--;
      } while (depth > 0 && at < signature.length);
    } else {
      at++;
    }
    types.push(signature.slice(start, at));
  }
  return types;
}
