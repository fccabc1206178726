import sys, os, keras, numpy as np, finetune, pathlib
from finetune.training.checkpoints.checkpoint import Checkpoint
class Kill(keras.callbacks.Callback):
    def __init__(s, at): super().__init__(); s.at=at
    def on_epoch_begin(s, e, logs=None): s.e=e
    def on_train_batch_end(s, b, logs=None):
        if (s.e,b)==s.at: raise RuntimeError("killed")
def train(folder, at=None):
    keras.utils.set_random_seed(0)
    m=keras.Sequential([keras.Input((4,)),keras.layers.Dense(8,name="body"),keras.layers.Dropout(.3),keras.layers.BatchNormalization(),keras.layers.Dense(2,name="head")])
    m.compile(keras.optimizers.Adam(1e-2),"mse",metrics=["mae"])
    rng=np.random.default_rng(0); x,y=rng.normal(size=(20,4)).astype("float32"),rng.normal(size=(20,2)).astype("float32")
    es=keras.callbacks.EarlyStopping("loss",patience=3,restore_best_weights=True)
    c=Checkpoint(folder,every_steps=1,callbacks=[es])
    b=c.batches(x,y,batch_size=3,seed=7)
    h=m.fit(b,steps_per_epoch=7,epochs=4,verbose=0,validation_data=(x,y),callbacks=[es,c]+([Kill(at)] if at else []))
    return m,h
import tempfile
m0,h0=train(tempfile.mkdtemp())
for at in [(0,0),(0,3),(0,6),(1,0),(2,5),(3,6)]:
    f=tempfile.mkdtemp()
    try: train(f,at)
    except RuntimeError: pass
    m1,h1=train(f)
    same=all((a.numpy()==b.numpy()).all() for a,b in zip(m0.variables+m0.optimizer.variables,m1.variables+m1.optimizer.variables))
    print(at, same, h0.history==h1.history, h0.epoch==h1.epoch)
