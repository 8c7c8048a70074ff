import dbus from 'dbus-next';
import { LunetteError } from '../../formats/core/errors.ts';

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
  /** @returns the values that come out. What it throws is answered as org.freedesktop.DBus.Error.Failed */
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

/** Answers to the request for a name (D-Bus specification). */
const PRIMARY_OWNER = 1;
const ALREADY_OWNER = 4;

/**
 * Objects on a message bus, by path. Unlike the library's own service classes it tells methods who calls, which decides about what they may.
 */
export class BusService {
  readonly #bus: dbus.MessageBus;
  readonly #objects = new Map<string, Map<string, BusInterface>>();
  #closed = false;

  private constructor(bus: dbus.MessageBus) {
    this.#bus = bus;
    bus.addMethodHandler((message: Message) => this.#handle(message));
  }

  /**
   * Connects to the system bus.
   *
   * @param onLost the connection is gone: nobody can call any more
   * @throws {LunetteError} UNAVAILABLE when there is no bus
   */
  static async connect(onLost: (error: Error) => void): Promise<BusService> {
    const bus = dbus.systemBus();
    const service = new BusService(bus);
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => reject(new Error('it does not answer')), BUS_TIMEOUT_MS);
      bus.once('connect', () => {
        clearTimeout(late);
        resolve();
      });
      bus.once('error', (error: Error) => {
        clearTimeout(late);
        reject(error);
      });
    }).catch((error: unknown) => {
      throw new LunetteError('UNAVAILABLE', `the D-Bus system bus: ${(error as Error).message}`, {
        help: 'targetcli talks to us over it: start dbus.',
        cause: error,
      });
    });
    bus.on('error', (error: Error) => {
      if (!service.#closed) onLost(error);
    });
    return service;
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
    let reply: number;
    try {
      reply = await this.#bus.requestName(name, dbus.NameFlag.DO_NOT_QUEUE);
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

  /** The user id behind a caller. */
  async userOf(caller: Caller): Promise<number> {
    return Number(await this.#ask('GetConnectionUnixUser', caller.name));
  }

  /** Who has a name; undefined: nobody. */
  async ownerOf(name: string): Promise<string | undefined> {
    try {
      return String(await this.#ask('GetNameOwner', name));
    } catch {
      return undefined;
    }
  }

  /** Calls a method of another service. @throws {Error} the D-Bus error */
  async call(
    destination: string,
    path: string,
    face: string,
    member: string,
    signature: string,
    body: readonly unknown[],
  ): Promise<readonly unknown[]> {
    const message = new dbus.Message({ destination, path, interface: face, member, signature, body: [...body] });
    return (await this.#bus.call(message))?.body ?? [];
  }

  /** Tells all who listen. */
  signal(path: string, face: string, name: string, signature: string, body: readonly unknown[]): void {
    this.#bus.send(dbus.Message.newSignal(path, face, name, signature, [...body]));
  }

  /** Gives the name back and disconnects. Safe to call twice. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#bus.disconnect();
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
  #handle(message: Message): boolean {
    void this.#answer(message);
    return true;
  }

  async #answer(message: Message): Promise<void> {
    try {
      const { out, values } = await this.#perform(message);
      this.#bus.send(dbus.Message.newMethodReturn(message, out, values));
    } catch (error) {
      if (this.#closed) return;
      const name = error instanceof BusError ? error.busName : 'Failed';
      // The library's types say that the message is a string, which it is not.
      const call = message as unknown as string;
      this.#bus.send(dbus.Message.newError(call, `${ERROR}${name}`, (error as Error).message));
    }
  }

  async #perform(message: Message): Promise<{ out: string; values: unknown[] }> {
    const { path, interface: face, member, sender, signature = '', body = [] } = message;
    if (face === PEER && member === 'Ping') return { out: '', values: [] };
    if (face === INTROSPECTABLE && member === 'Introspect') return { out: 's', values: [this.#introspect(path)] };
    const faces = this.#objects.get(path);
    if (faces === undefined) throw new BusError('UnknownObject', `there is no object ${path}`);
    if (face === PROPERTIES) return propertyCall(faces, member, body);
    const candidates = face === undefined || face === null ? [...faces.values()] : [faces.get(face)];
    const method = candidates.map((candidate) => candidate?.methods?.[member]).find((found) => found !== undefined);
    if (method === undefined) throw new BusError('UnknownMethod', `there is no method ${face}.${member} on ${path}`);
    if (signature !== method.in) {
      throw new BusError('InvalidArgs', `${member} takes (${method.in}), not (${signature})`);
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

/** An error by its name on the bus. */
class BusError extends Error {
  readonly busName: string;

  constructor(busName: string, message: string) {
    super(message);
    this.busName = busName;
  }
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

function propertyCall(
  faces: ReadonlyMap<string, BusInterface>,
  member: string | undefined,
  body: readonly unknown[],
): { out: string; values: unknown[] } {
  const [name, property] = body.map(String);
  const face = faces.get(name ?? '');
  if (member === 'GetAll') return { out: 'a{sv}', values: [face === undefined ? {} : propertiesOf(face)] };
  if (member !== 'Get') throw new BusError('PropertyReadOnly', 'properties can be read only');
  const found = face?.properties?.[property ?? ''];
  if (found === undefined) throw new BusError('UnknownProperty', `there is no property ${name}.${property}`);
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
