import { BusError, type BusInterface, type BusService, type Caller, NO_REPLY, propertiesOf } from './bus-service.ts';

/** The name that targetcli looks for, and the interface of handlers. */
export const TCMU_SERVICE = 'org.kernel.TCMUService1';
const ROOT = '/org/kernel/TCMUService1';
const REGISTRY = `${TCMU_SERVICE}.HandlerManager1`;
const REGISTRY_PATH = `${ROOT}/HandlerManager1`;
const OBJECTS = 'org.freedesktop.DBus.ObjectManager';

/** How long a handler of another process has to appear on the bus after it was announced, ms. */
const APPEAR_MS = 10_000;
const LOOK_MS = 100;

/** What targetcli shows as `user:NAME` and asks about. */
export interface TcmuHandler {
  readonly name: string;
  /** Help of `targetcli /backstores/user:NAME create`. */
  readonly description: string;
  /** @param trusted the caller is root: it may learn about files. @returns why the configuration is no good; undefined: it is */
  check(config: string, trusted: boolean): Promise<string | undefined>;
  /** Serves another image from a device of that name. @returns why not; undefined: done */
  changeMedium?(device: string, size: number, config: string): Promise<string | undefined>;
}

/**
 * The service org.kernel.TCMUService1, as targetcli and rtslib know it from tcmu-runner: an object for each handler, an object manager that
 * lists them, and one where other processes register handlers of their own.
 */
export class TcmuObjects {
  readonly #bus: BusService;
  readonly #handlers = new Map<string, BusInterface>();
  /** Handlers of other processes. */
  readonly #foreign = new Set<string>();
  readonly #watches = new Set<NodeJS.Timeout>();

  /** Puts the objects on the bus; nobody sees them before publish(). */
  constructor(bus: BusService, handlers: readonly TcmuHandler[]) {
    this.#bus = bus;
    this.#addRoot();
    this.#addRegistry();
    for (const handler of handlers) this.#add(handler);
  }

  /** Takes the service's name. @throws {LunetteError} EXISTS when tcmu-runner or its like has it; ACCESS */
  publish(): Promise<void> {
    return this.#bus.own(TCMU_SERVICE);
  }

  /** Whether another process has registered a handler of this name: then it answers for its devices. */
  isForeign(handler: string): boolean {
    return this.#foreign.has(handler);
  }

  #add(handler: TcmuHandler): void {
    const { name, description, changeMedium } = handler;
    const face: BusInterface = {
      properties: { ConfigDesc: { signature: 's', get: () => description } },
      methods: {
        CheckConfig: {
          in: 's',
          out: 'bs',
          names: ['configstr', 'is_valid', 'message'],
          call: async ([config], caller) => {
            const problem = await handler.check(String(config), await this.#bus.isRoot(caller));
            return problem === undefined ? [true, 'success'] : [false, problem];
          },
        },
        ...(changeMedium === undefined
          ? {}
          : {
              ChangeMedium: {
                in: 'sts',
                out: 'is',
                names: ['name', 'size', 'configstr', 'result', 'message'],
                call: async ([device, size, config], caller) => {
                  if (!(await this.#bus.isRoot(caller))) return [1, 'only root may do this'];
                  const problem = await changeMedium(String(device), Number(size), String(config));
                  return problem === undefined ? [0, 'success'] : [1, problem];
                },
              },
            }),
      },
    };
    this.#put(name, face);
  }

  /** Takes the objects away, and gives the name back. */
  close(): Promise<void> {
    for (const name of this.#handlers.keys()) this.#bus.remove(`${ROOT}/${name}`);
    this.#bus.remove(ROOT);
    this.#bus.remove(REGISTRY_PATH);
    for (const timer of this.#watches) clearInterval(timer);
    return this.#bus.disown(TCMU_SERVICE);
  }

  #put(name: string, face: BusInterface): void {
    this.#handlers.set(name, face);
    this.#bus.add(`${ROOT}/${name}`, TCMU_SERVICE, face);
  }

  #addRoot(): void {
    this.#bus.add(ROOT, OBJECTS, {
      methods: {
        GetManagedObjects: {
          in: '',
          out: 'a{oa{sa{sv}}}',
          names: ['objects'],
          call: () => [
            Object.fromEntries(
              [...this.#handlers].map(([name, face]) => [`${ROOT}/${name}`, { [TCMU_SERVICE]: propertiesOf(face) }]),
            ),
          ],
        },
      },
    });
  }

  #addRegistry(): void {
    this.#bus.add(REGISTRY_PATH, REGISTRY, {
      methods: {
        RegisterHandler: {
          in: 'ss',
          out: 'bs',
          names: ['subtype', 'cfgstr_desc', 'succeeded', 'message'],
          call: async ([subtype, description], caller) => {
            const problem = await this.#register(String(subtype), String(description), caller);
            return problem === undefined ? [true, 'succeeded'] : [false, problem];
          },
        },
      },
    });
  }

  /** A handler of another process: it has to own a name of its own, and is asked there. */
  async #register(subtype: string, description: string, caller: Caller): Promise<string | undefined> {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(subtype)) return 'the subtype has characters that no object path can have';
    if (this.#handlers.has(subtype)) return `there is a handler ${subtype} already`;
    if (!(await this.#bus.isRoot(caller))) return 'only root may register handlers';
    const name = `${REGISTRY}.${subtype}`;
    const owner = await this.#appears(name);
    if (owner === undefined) return `Cannot find handler bus name: ${name}`;
    if (this.#handlers.has(subtype)) return `there is a handler ${subtype} already`;
    const path = `${REGISTRY_PATH}/${subtype}`;
    this.#foreign.add(subtype);
    this.#put(subtype, {
      properties: { ConfigDesc: { signature: 's', get: () => description } },
      methods: {
        CheckConfig: {
          in: 's',
          out: 'bs',
          names: ['configstr', 'is_valid', 'message'],
          call: async ([config], caller) => {
            // It would take the question for ours, and root's.
            if (!(await this.#bus.isRoot(caller))) return [false, 'only root may do this'];
            return [
              ...(await this.#bus.call(name, path, TCMU_SERVICE, 'CheckConfig', 's', [config]).catch(unanswered)),
            ];
          },
        },
      },
    });
    this.#watch(subtype, name, owner);
    this.#bus.signal(ROOT, OBJECTS, 'InterfacesAdded', 'oa{sa{sv}}', [
      `${ROOT}/${subtype}`,
      { [TCMU_SERVICE]: propertiesOf(this.#handlers.get(subtype) as BusInterface) },
    ]);
    return undefined;
  }

  async #appears(name: string): Promise<string | undefined> {
    const deadline = Date.now() + APPEAR_MS;
    for (;;) {
      const owner = await this.#bus.ownerOf(name);
      if (owner !== undefined || Date.now() > deadline) return owner;
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
  }

  /** Forgets a handler whose process has gone. */
  #watch(subtype: string, name: string, owner: string): void {
    const timer = setInterval(() => {
      void this.#bus.ownerOf(name).then((now) => {
        if (now === owner) return;
        clearInterval(timer);
        this.#watches.delete(timer);
        this.#foreign.delete(subtype);
        this.#handlers.delete(subtype);
        this.#bus.remove(`${ROOT}/${subtype}`);
        this.#bus.signal(ROOT, OBJECTS, 'InterfacesRemoved', 'oas', [`${ROOT}/${subtype}`, [TCMU_SERVICE]]);
      });
    }, 1000);
    timer.unref();
    this.#watches.add(timer);
  }
}

/** targetcli shows why a configuration is refused, and not what else goes wrong. */
function unanswered(error: unknown): [boolean, string] {
  if (error instanceof BusError && error.busName === NO_REPLY) return [false, error.message];
  throw error;
}
