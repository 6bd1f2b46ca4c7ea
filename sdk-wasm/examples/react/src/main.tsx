import { OpenFeature, OpenFeatureProvider } from '@openfeature/react-sdk';
import { TidegateProvider } from '@tidegate/web/openfeature';
import { createRoot } from 'react-dom/client';
import { App } from './App';

const { VITE_TIDEGATE_URL, VITE_TIDEGATE_KEY, VITE_TIDEGATE_PUBLIC_KEY } = import.meta.env;

// Before anything is drawn, so that the flags are on their way while React starts.
OpenFeature.setProvider(
  new TidegateProvider({ edgeUrl: VITE_TIDEGATE_URL, key: VITE_TIDEGATE_KEY, publicKey: VITE_TIDEGATE_PUBLIC_KEY }),
  { targetingKey: 'user-1', plan: 'free' },
);

createRoot(document.getElementById('root')!).render(
  <OpenFeatureProvider>
    <App />
  </OpenFeatureProvider>,
);
